"""Compare trained runs on the same faces: paired differences with intervals, cost, groups, a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agegen.compare.costs import Cost, measure_cost
from agegen.compare.differences import LEAST_FACES, GroupDifferences, MetricRow, find_group_differences, measure_rows
from agegen.compare.sources import SourceCell, SourceRow, measure_sources
from agegen.data.labels import AGE_BOUNDS
from agegen.data.manifests import PLAIN, ReadOptions
from agegen.data.scan import ProgressHook, ignore_progress
from agegen.data.splits import HASH_COLUMN, find_seen, read_split, unpack_hashes
from agegen.errors import AgegenError
from agegen.evaluate.estimates import read_predictions
from agegen.evaluate.evaluate import EvalConfig, evaluate_run
from agegen.evaluate.evaluation import round_number
from agegen.evaluate.metrics import Metric
from agegen.runs import RunFolder, list_finished_runs, list_sources, open_run

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class CompareConfig:
    """Options of ``agegen compare``; no ``runs`` stands for the newest finished run of each model."""

    runs: tuple[Path, ...] = ()
    data: tuple[str, ...] = ()
    split: str = "test"
    device: str = "auto"
    cache_dir: Path | None = None


@dataclass(frozen=True)
class Comparison:
    """Everything that ``agegen compare`` shows.

    ``predictions`` holds each run's table over the same faces in the same order; ``curves`` its epochs; ``data`` and
    ``reading`` say where the faces are and how they are read.
    """

    names: tuple[str, ...]
    runs: tuple[Path, ...]
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
                {"name": name, "run": str(run), "cost": vars(cost)}
                for name, run, cost in zip(self.names, self.runs, self.costs, strict=True)
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
    """Compare runs on the faces that all of them can be tested on.

    Raises:
        AgegenError: fewer than two runs, or too few faces that none of them trained on.
    """
    runs = choose_runs(config.runs)
    records = [run.read() for run in runs]
    names = name_runs(runs, [str(record["model"]) for record in records])
    collected, notices = collect_predictions(runs, config, on_progress)
    tables, source = align_predictions(names, collected, config)
    first = next(iter(tables.values()))
    age, gender = measure_rows(names, tables)
    costs = [measure_cost(run, record, config.device, on_progress) for run, record in zip(runs, records, strict=True)]
    return Comparison(
        names=names,
        runs=tuple(run.path for run in runs),
        n=len(first),
        source=source,
        age=age,
        gender=gender,
        costs=costs,
        groups=find_group_differences(names, tables),
        verdict=write_verdict(names, len(first), age, gender, costs, trained=config.split == "train"),
        notices=tuple(dict.fromkeys(notices)),
        predictions=tables,
        curves={name: run.read_epochs() for name, run in zip(names, runs, strict=True)},
        data=config.data or list_sources(records[0]),
        reading=PLAIN if config.data else PLAIN.fill_from(records[0]),
        sources=measure_sources(names, tables),
    )


def choose_runs(paths: tuple[Path, ...]) -> list[RunFolder]:
    """Return the runs named, or the newest finished run of each model under ``./runs``."""
    if paths:
        runs = [open_run(path) for path in paths]
        for run in runs:
            if not run.read().get("finished"):
                raise AgegenError(f"{run.path} is not finished; there is nothing to compare yet")
    else:
        newest = {str(run.read()["model"]): run for run in list_finished_runs()}
        runs = [newest[model] for model in sorted(newest)]
    if len({run.path.resolve() for run in runs}) < max(2, len(runs)):
        raise AgegenError(
            f"a comparison needs at least two different finished runs, not {len(runs)}; name them, or train another "
            "model, e.g. `agegen train --model vgg16`"
        )
    return runs


def name_runs(runs: list[RunFolder], models: list[str]) -> tuple[str, ...]:
    """Return a short name per run: its model where that tells them apart, else its folder's."""
    if len(set(models)) == len(models):
        return tuple(models)
    folders = [run.path.resolve().name for run in runs]
    return tuple(folders if len(set(folders)) == len(folders) else [str(run.path) for run in runs])


def collect_predictions(
    runs: list[RunFolder], config: CompareConfig, on_progress: ProgressHook
) -> tuple[list[pd.DataFrame], list[str]]:
    """Return each run's predictions (those that it kept of its test split, else made anew), with a column ``seen``:
    which faces any of the trainings saw, or a near-duplicate of.
    """
    if not config.data and config.split == "test":
        splits = [read_split(run.split) for run in runs]
        kept = [read_predictions(run.predictions) for run in runs]
        return [mark_seen(table, split, splits) for table, split in zip(kept, splits, strict=True)], []
    tables: list[pd.DataFrame] = []
    notices: list[str] = []
    for run in runs:
        chosen = EvalConfig(
            run.path, data=config.data, split=config.split, device=config.device, cache_dir=config.cache_dir
        )
        result = evaluate_run(chosen, on_progress)
        tables.append(result.predictions.assign(seen=result.seen))
        notices.extend(result.notices)
    return tables, notices


def mark_seen(table: pd.DataFrame, own: pd.DataFrame, splits: list[pd.DataFrame]) -> pd.DataFrame:
    """Return predictions with the column ``seen``: whether any of the trainings behind ``splits`` saw the face."""
    hashes = None
    if HASH_COLUMN in own.columns:
        known = dict(zip(own["sha256"], own[HASH_COLUMN], strict=True))
        hashes = unpack_hashes(known[digest] for digest in table["sha256"])
    seen = np.zeros(len(table), dtype=bool)
    for split in splits:
        seen |= find_seen(split, list(table["sha256"]), hashes)
    return table.assign(seen=seen)


def align_predictions(
    names: tuple[str, ...], tables: list[pd.DataFrame], config: CompareConfig
) -> tuple[dict[str, pd.DataFrame], str]:
    """Return the tables over the faces that all have and no training saw, in one order.

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
        counts = ", ".join(f"{name} {len(table):,}" for name, table in zip(names, tables, strict=True))
        raise AgegenError(
            f"these runs can't be compared: only {len(common)} faces are in the test set of each ({counts}) and in "
            "nobody's training split; train with the same data and --seed, or with --split-file, or give --data"
        )
    order = [digest for digest in tables[0].index if digest in common]
    aligned = {
        name: table.loc[order].drop(columns="seen").reset_index(drop=True)
        for name, table in zip(names, tables, strict=True)
    }
    _check_labels(aligned)
    faces = "all test faces" if all(len(table) == len(order) for table in tables) else "the common test faces"
    whole = config.data or config.split != "test"
    return aligned, f"split '{config.split}' of {' + '.join(config.data) or 'the runs’ data'}" if whole else faces


_LABELS = ("age", "female", *AGE_BOUNDS)


def _check_labels(tables: dict[str, pd.DataFrame]) -> None:
    first, *others = tables.values()
    for table in others:
        if any(not first[name].equals(table[name]) for name in _LABELS if name in first.columns):
            raise AgegenError("these runs can't be compared: the same faces have different labels in their data")


def _cell_to_json(cell: SourceCell) -> dict[str, Any]:
    metrics = {name: _metric_to_json(getattr(cell, name)) for name in ("mae", "in_bracket", "accuracy")}
    return {"run": cell.name, **metrics}


def _metric_to_json(metric: Metric) -> dict[str, Any]:
    interval = [round_number(metric.low), round_number(metric.high)]
    return {"value": round_number(metric.value), "ci95": None if interval[0] is None else interval}


def write_verdict(
    names: tuple[str, ...],
    n: int,
    age: list[MetricRow],
    gender: list[MetricRow],
    costs: list[Cost],
    trained: bool = False,
) -> str:
    """Return one plain sentence on the first two runs, made from the numbers alone.

    Args:
        trained: whether the faces are those of the training split.
    """
    parts = []
    if row := next((row for row in age if row.name in ("mae", "in_bracket")), None):
        values = tuple(_phrase_value(row.name, metric.value) for metric in row.values[:2])
        parts.append(_phrase("age", "an MAE" if row.name == "mae" else "in the bracket", names, values, row))
    if gender:
        values = tuple(_phrase_value("accuracy", metric.value) for metric in gender[0].values[:2])
        parts.append(_phrase("gender", "an accuracy", names, values, gender[0]))
    spent = [_phrase_cost(name, cost) for name, cost in zip(names[:2], costs[:2], strict=True)]
    faces = "faces that both were trained on" if trained else "faces that neither was trained on"
    more = f" (of {len(names)} runs, this speaks of the first two)" if len(names) > 2 else ""
    return (
        f"On {n:,} {faces}, {', and '.join(parts)}; {spent[0]}, {spent[1]}. "
        f"This compares one training of each, not the models as such{more}."
    )


def _phrase_value(metric: str, value: float) -> str:
    return f"{value:.2f} years" if metric == "mae" else f"{value * 100:.1f} %"


def _phrase(task: str, measure: str, names: tuple[str, ...], values: tuple[str, ...], row: MetricRow) -> str:
    better = row.better[0]
    if better is None:
        both = " and ".join(f"{value} for {name}" for name, value in zip(names, values, strict=False))
        return f"{task} shows no clear difference ({measure} of {both})"
    best, other = (0, 1) if better == names[0] else (1, 0)
    return f"this training of {better} is better at {task} ({measure} of {values[best]} against {values[other]})"


def _phrase_cost(name: str, cost: Cost) -> str:
    once = f" after {cost.feature_minutes:.0f} for its features" if cost.feature_minutes else ""
    return f"{name} trained {cost.trainable / 1e6:.2f}M parameters in {cost.minutes:.0f} minutes{once}"
