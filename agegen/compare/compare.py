"""Compare trained runs on the same faces: paired differences with intervals, cost, groups, a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agegen.compare.costs import Cost, measure_cost
from agegen.compare.differences import LEAST_FACES, GroupDifferences, MetricRow, find_group_differences, measure_rows
from agegen.compare.models import ComparedModel, ComparedRun, choose_models, name_models
from agegen.data.labels import AGE_BOUNDS, read_labels
from agegen.data.manifests import DEFAULT_READ_OPTIONS, ReadOptions
from agegen.data.records import SOURCE_COLUMN
from agegen.data.scan import ProgressHook, ignore_progress
from agegen.data.splits import HASH_COLUMN, find_training_overlap, read_split, unpack_hashes
from agegen.errors import AgegenError
from agegen.evaluate.estimates import read_predictions
from agegen.evaluate.evaluate import EvalConfig, evaluate_run
from agegen.evaluate.evaluation import round_number
from agegen.evaluate.metrics import Metric, measure_age, measure_brackets, measure_gender, widen_brackets
from agegen.runs import list_sources

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SourceCell:
    """A run on a data set: a metric with its interval; NaN where the set has no such labels."""

    name: str
    mae: Metric
    in_bracket: Metric
    accuracy: Metric


@dataclass(frozen=True)
class SourceRow:
    """A data set: its name, its faces, and each run on it."""

    source: str
    n: int
    cells: list[SourceCell]


def measure_sources(names: tuple[str, ...], tables: dict[str, pd.DataFrame]) -> list[SourceRow]:
    """Return a row per data set; none where the faces are of one set only."""
    first = tables[names[0]]
    if SOURCE_COLUMN not in first.columns:
        return []
    rows = []
    for source in first[SOURCE_COLUMN].unique():
        inside = (first[SOURCE_COLUMN] == source).to_numpy()
        rows.append(SourceRow(str(source), int(inside.sum()), [_measure(name, tables[name][inside]) for name in names]))
    return rows


def _measure(name: str, table: pd.DataFrame) -> SourceCell:
    labels = read_labels(table)
    age, p_female = (table[column].to_numpy(dtype=float) for column in ("estimated_age", "p_female"))
    low, high = labels.low.astype(float), labels.high.astype(float)
    exact, wide, known = labels.exact, labels.bracketed, labels.gendered
    return SourceCell(
        name,
        measure_age(age[exact], low[exact]).mae,
        measure_brackets(age[wide], widen_brackets(low[wide], high[wide])).in_bracket,
        measure_gender(p_female[known], np.asarray(labels.female[known] > 0.5)).accuracy,
    )


def write_verdict(
    names: tuple[str, ...],
    n: int,
    age: list[MetricRow],
    gender: list[MetricRow],
    costs: list[Cost],
    trainings: tuple[int, ...] = (1, 1),
    trained: bool = False,
) -> str:
    """Return one plain sentence on the first two runs, made from the numbers alone.

    Args:
        trainings: how many of each model there are.
        trained: whether the faces are those of the training split.
    """
    more = f" (of {len(names)} runs, this speaks of the first two)" if len(names) > 2 else ""
    if min(trainings[:2]) > 1:
        judged = f"This compares the models, by {trainings[0]} trainings of {names[0]} and {trainings[1]} of {names[1]}"
        once = ""
    else:
        judged, once = "This compares one training of each, not the models as such", "this training of "
    parts = []
    if row := next((row for row in age if row.name in ("mae", "in_bracket")), None):
        values = tuple(_phrase_value(row.name, metric.value) for metric in row.values[:2])
        parts.append(_phrase("age", "an MAE" if row.name == "mae" else "in the bracket", names, values, row, once))
    if gender:
        values = tuple(_phrase_value("accuracy", metric.value) for metric in gender[0].values[:2])
        parts.append(_phrase("gender", "an accuracy", names, values, gender[0], once))
    spent = [_phrase_cost(name, cost) for name, cost in zip(names[:2], costs[:2], strict=True)]
    faces = "faces that both were trained on" if trained else "faces that neither was trained on"
    return f"On {n:,} {faces}, {', and '.join(parts)}; {spent[0]}, {spent[1]}. {judged}{more}."


def _phrase_value(metric: str, value: float) -> str:
    return f"{value:.2f} years" if metric == "mae" else f"{value * 100:.1f} %"


def _phrase(task: str, measure: str, names: tuple[str, ...], values: tuple[str, ...], row: MetricRow, once: str) -> str:
    better = row.better[0]
    if better is None:
        both = " and ".join(f"{value} for {name}" for name, value in zip(names, values, strict=False))
        return f"{task} shows no clear difference ({measure} of {both})"
    best, other = (0, 1) if better == names[0] else (1, 0)
    return f"{once}{better} is better at {task} ({measure} of {values[best]} against {values[other]})"


def _phrase_cost(name: str, cost: Cost) -> str:
    once = f" after {cost.feature_minutes:.0f} for its features" if cost.feature_minutes else ""
    spent = "" if cost.minutes is None else f" in {cost.minutes:.0f} minutes"
    return f"{name} trained {cost.trainable / 1e6:.2f}M parameters{spent}{once}"


@dataclass(frozen=True)
class CompareConfig:
    """Options of ``agegen compare``; ``runs`` are those of :func:`agegen.compare.models.choose_models`."""

    runs: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    split: str = "test"
    device: str = "auto"
    cache_dir: Path | None = None


@dataclass(frozen=True)
class Comparison:
    """Everything that ``agegen compare`` shows.

    ``runs`` are what was named, and ``trainings`` how many each of them holds.
    ``predictions`` holds each run's table over the same faces in the same order; ``curves`` its epochs; ``data`` and
    ``reading`` say where the faces are and how they are read.
    """

    names: tuple[str, ...]
    runs: tuple[str, ...]
    trainings: tuple[int, ...]
    n: int
    source: str
    age: list[MetricRow]
    gender: list[MetricRow]
    costs: list[Cost]
    groups: GroupDifferences
    verdict: str
    notices: tuple[str, ...]
    predictions: dict[str, pd.DataFrame]
    curves: dict[str, pd.DataFrame]
    data: tuple[str, ...]
    reading: ReadOptions
    sources: list[SourceRow]

    def to_json(self) -> dict[str, Any]:
        """Return the stable JSON form of all tables and the verdict."""
        return {
            "n": self.n,
            "source": self.source,
            "runs": [
                {"name": name, "run": run, "trainings": count, "cost": vars(cost)}
                for name, run, count, cost in zip(self.names, self.runs, self.trainings, self.costs, strict=True)
            ],
            "age": [self._row_to_json(row) for row in self.age],
            "gender": [self._row_to_json(row) for row in self.gender],
            "groups": [{**vars(group), "difference": _metric_to_json(group.difference)} for group in self.groups.rows],
            "groups_looked_at": self.groups.looked_at,
            "sources": [
                {"source": row.source, "n": row.n, "runs": [_cell_to_json(cell) for cell in row.cells]}
                for row in self.sources
            ],
            "verdict": self.verdict,
            "notices": list(self.notices),
        }

    def _row_to_json(self, row: MetricRow) -> dict[str, Any]:
        return {
            "metric": row.name,
            "values": {name: _metric_to_json(value) for name, value in zip(self.names, row.values, strict=True)},
            "differences": [
                {"run": name, "to": self.names[0], "better": better, **_metric_to_json(difference)}
                for name, difference, better in zip(self.names[1:], row.differences, row.better, strict=True)
            ],
        }


def compare_runs(config: CompareConfig, on_progress: ProgressHook = ignore_progress) -> Comparison:
    """Compare runs, or weights that ship, on the faces that all of them can be tested on.

    Raises:
        AgegenError: fewer than two runs, weights alone without data, or too few faces that none of them trained on.
    """
    models = choose_models(config.runs)
    names = name_models(models)
    every = [training for model in models for training in model.trainings]
    alone = [name for name, model in zip(names, models, strict=True) if model.trainings[0].run is None]
    if alone and not config.data:
        raise AgegenError(f"{alone[0]} has no run that names its faces: give --data PATH")
    collected, notices = collect_predictions(every, config, on_progress)
    trainings, source = align_predictions(names, models, collected, config)
    tables = {name: tables[0] for name, tables in trainings.items()}
    first = next(iter(tables.values()))
    age, gender = measure_rows(names, trainings)
    counts = tuple(len(model.trainings) for model in models)
    firsts = [model.trainings[0] for model in models]
    runs = {name: first.run for name, first in zip(names, firsts, strict=True) if first.run is not None}
    record = next(iter(runs.values())).read() if runs else {}
    if max(counts) > 1:
        notices.append("groups, data sets, curves, costs and faces are those of the first training of each model")
    costs = [measure_cost(first, name, config.device, on_progress) for name, first in zip(names, firsts, strict=True)]
    return Comparison(
        names=names,
        runs=tuple(model.given for model in models),
        trainings=counts,
        n=len(first),
        source=source,
        age=age,
        gender=gender,
        costs=costs,
        groups=find_group_differences(names, tables),
        verdict=write_verdict(names, len(first), age, gender, costs, counts, trained=config.split == "train"),
        notices=tuple(dict.fromkeys(notices)),
        predictions=tables,
        curves={name: run.read_epochs() for name, run in runs.items()},
        data=config.data or list_sources(record),
        reading=DEFAULT_READ_OPTIONS if config.data else DEFAULT_READ_OPTIONS.fill_from(record),
        sources=measure_sources(names, tables),
    )


def collect_predictions(
    trainings: list[ComparedRun], config: CompareConfig, on_progress: ProgressHook
) -> tuple[list[pd.DataFrame], list[str]]:
    """Return each training's predictions (those that its run kept of its test split, else made anew), with ``seen``:
    which faces any of the trainings saw, or a near-duplicate of.
    """
    runs = [training.run for training in trainings if training.run is not None]
    if not config.data and config.split == "test":
        splits = [read_split(run.split) for run in runs]
        kept = [read_predictions(run.predictions) for run in runs]
        return [mark_seen(table, split, splits) for table, split in zip(kept, splits, strict=True)], []
    tables: list[pd.DataFrame] = []
    notices: list[str] = []
    for training in trainings:
        chosen = EvalConfig(
            training.place, data=config.data, split=config.split, device=config.device, cache_dir=config.cache_dir
        )
        result = evaluate_run(chosen, on_progress)
        tables.append(result.predictions.assign(seen=result.seen))
        notices.extend(result.notices)
    return tables, notices


def mark_seen(table: pd.DataFrame, own: pd.DataFrame, splits: list[pd.DataFrame]) -> pd.DataFrame:
    """Return predictions with the column ``seen``: whether any of the trainings behind ``splits`` saw the face."""
    known = dict(zip(own["sha256"], own[HASH_COLUMN], strict=True))
    hashes = unpack_hashes(known[digest] for digest in table["sha256"])
    seen = np.zeros(len(table), dtype=bool)
    for split in splits:
        seen |= find_training_overlap(split, list(table["sha256"]), hashes)
    return table.assign(seen=seen)


def align_predictions(
    names: tuple[str, ...], models: list[ComparedModel], tables: list[pd.DataFrame], config: CompareConfig
) -> tuple[dict[str, list[pd.DataFrame]], str]:
    """Return each model's tables, one per training, over the faces that all have and no training saw, in one order.

    With ``--split train`` the faces that trainings saw are what is asked for, and stay.

    Raises:
        AgegenError: fewer than 30 such faces, or labels that differ between the runs.
    """
    tables = [table.drop_duplicates("sha256").set_index("sha256", drop=False) for table in tables]
    common = set.intersection(*(set(table.index) for table in tables))
    if config.split != "train":
        for table in tables:
            common -= set(table.index[table["seen"]])
    if len(common) < LEAST_FACES:
        owners = [name for name, model in zip(names, models, strict=True) for _ in model.trainings]
        counts = ", ".join(f"{name} {len(table):,}" for name, table in zip(owners, tables, strict=True))
        raise AgegenError(
            f"these runs can't be compared: only {len(common)} faces are in the test set of each ({counts}) and in "
            "nobody's training split; train with the same data and --seed, or with --split-file, or give --data"
        )
    order = [digest for digest in tables[0].index if digest in common]
    ordered = [table.loc[order].drop(columns="seen").reset_index(drop=True) for table in tables]
    _check_labels(ordered)
    rest = iter(ordered)
    aligned = {name: [next(rest) for _ in model.trainings] for name, model in zip(names, models, strict=True)}
    faces = "all test faces" if all(len(table) == len(order) for table in tables) else "the common test faces"
    whole = config.data or config.split != "test"
    return aligned, f"split '{config.split}' of {' + '.join(config.data) or 'the runs’ data'}" if whole else faces


_LABELS = ("age", "female", *AGE_BOUNDS)


def _check_labels(tables: list[pd.DataFrame]) -> None:
    first, *others = tables
    for table in others:
        if any(not first[name].equals(table[name]) for name in _LABELS if name in first.columns):
            raise AgegenError("these runs can't be compared: the same faces have different labels in their data")


def _cell_to_json(cell: SourceCell) -> dict[str, Any]:
    metrics = {name: _metric_to_json(getattr(cell, name)) for name in ("mae", "in_bracket", "accuracy")}
    return {"run": cell.name, **metrics}


def _metric_to_json(metric: Metric) -> dict[str, Any]:
    interval = [round_number(metric.low), round_number(metric.high)]
    return {"value": round_number(metric.value), "ci95": None if interval[0] is None else interval}
