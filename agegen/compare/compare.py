"""Compare models on the same faces: paired differences with intervals, costs, groups, datasets, and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from agegen.compare.costs import Cost, measure_cost
from agegen.compare.differences import (
    MIN_FACES,
    BiasRow,
    GroupDifferences,
    MetricRow,
    find_group_differences,
    measure_biases,
    measure_rows,
)
from agegen.compare.models import ComparedModel, ComparedRun, choose_models, name_models
from agegen.data.labels import AGE_BOUNDS, drop_ages, read_labels
from agegen.data.records import SOURCE_COLUMN
from agegen.data.scan import ProgressHook, ignore_progress
from agegen.errors import AgegenError, format_count
from agegen.evaluate.config import CompareConfig, EvalConfig
from agegen.evaluate.estimates import read_predictions
from agegen.evaluate.evaluate import evaluate_run
from agegen.evaluate.evaluation import round_number
from agegen.evaluate.metrics import (
    Metric,
    MetricSpec,
    define_age_metrics,
    define_bracket_metrics,
    define_gender_metrics,
    measure_all,
    widen_brackets,
)
from agegen.evaluate.subject import TrainingSplit, read_training_split
from agegen.options import DEFAULT_READ_OPTIONS, ReadOptions
from agegen.runs import RunFolder, describe_damaged_runs, list_sources

if TYPE_CHECKING:
    import pandas as pd

# Of the metrics that a verdict is about.
_MEASURES = {"mae": "MAE", "in_bracket": "share in the bracket", "accuracy": "accuracy"}
_LABEL_COLUMNS = ("age", "female", *AGE_BOUNDS)


@dataclass(frozen=True)
class SourceCell:
    """The metrics of a model on one dataset, with intervals; NaN if the dataset has no such labels."""

    name: str
    mae: Metric
    in_bracket: Metric
    accuracy: Metric

    def to_json(self) -> dict[str, Any]:
        """Return the stable JSON form."""
        metrics = {name: _metric_to_json(getattr(self, name)) for name in ("mae", "in_bracket", "accuracy")}
        return {"run": self.name, **metrics}


@dataclass(frozen=True)
class SourceRow:
    """A dataset: its name, its number of faces, and each model on it."""

    source: str
    n: int
    cells: list[SourceCell]


@dataclass(frozen=True)
class Comparison:
    """Everything that ``agegen compare`` shows.

    Attributes:
        names: of the models, short and distinct.
        runs: what the user named, and ``trainings`` the number of trainings that each of them has.
        n: the number of faces, and ``source`` where they come from.
        age: the rows of the age table, and ``gender`` those of the gender table.
        costs: of the first training of each model.
        biases: the bias of each model by true age.
        groups: differences of each later model to the first.
        verdict: a sentence about all models.
        notices: what the user should know about the data.
        predictions: of the first training of each model, on the same faces in the same order.
        curves: the epochs of each model's first training; weights without a run have none.
        missing_curves: why a model (name: reason) has no curves.
        data: the datasets, and ``reading`` how they are read, to show images of.
        sources: the metrics by dataset; empty for a single one.
    """

    names: tuple[str, ...]
    runs: tuple[str, ...]
    trainings: tuple[int, ...]
    n: int
    source: str
    age: list[MetricRow]
    gender: list[MetricRow]
    costs: list[Cost]
    biases: list[BiasRow]
    groups: GroupDifferences
    verdict: str
    notices: tuple[str, ...]
    predictions: dict[str, pd.DataFrame]
    curves: dict[str, pd.DataFrame]
    missing_curves: dict[str, str]
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
            "bias_by_age": [
                {"age_band": row.band, "n": row.n, "values": self._values_to_json(row.values)} for row in self.biases
            ],
            "groups": [{**vars(group), "difference": _metric_to_json(group.difference)} for group in self.groups.rows],
            "groups_looked_at": self.groups.count,
            "sources": [
                {"source": row.source, "n": row.n, "runs": [cell.to_json() for cell in row.cells]}
                for row in self.sources
            ],
            "verdict": self.verdict,
            "notices": list(self.notices),
        }

    def _values_to_json(self, values: tuple[Metric, ...]) -> dict[str, Any]:
        return {name: _metric_to_json(value) for name, value in zip(self.names, values, strict=True)}

    def _row_to_json(self, row: MetricRow) -> dict[str, Any]:
        return {
            "metric": row.name,
            "values": self._values_to_json(row.values),
            "differences": [
                {"run": name, "to": self.names[0], "better": better, **_metric_to_json(difference)}
                for name, difference, better in zip(self.names[1:], row.differences, row.better, strict=True)
            ],
        }


def _metric_to_json(metric: Metric) -> dict[str, Any]:
    interval = [round_number(metric.low), round_number(metric.high)]
    return {"value": round_number(metric.value), "ci95": None if interval[0] is None else interval}


def compare_runs(config: CompareConfig, on_progress: ProgressHook = ignore_progress) -> Comparison:
    """Compare runs, or bundled weights, on the faces that all of them can be tested on.

    Raises:
        AgegenError: fewer than two models, weights without a run and without data, or too few faces that none of the
            models was trained on.
    """
    models = choose_models(config.runs)
    names = name_models(models)
    _check_data(names, models, config.data)
    every = [training for model in models for training in model.trainings]
    collected, notices = collect_predictions(every, config, on_progress)
    trainings, whole = align_predictions(names, models, collected, config.split)
    tables = {name: tables[0] for name, tables in trainings.items()}
    n = len(tables[names[0]])
    age, gender = measure_rows(names, trainings)
    counts = tuple(len(model.trainings) for model in models)
    if not config.runs:
        notices += describe_damaged_runs()
    if max(counts) > 1:
        notices.append(
            "groups, datasets, learning curves, costs and images are those of the first training of each model"
        )
    firsts = {name: model.trainings[0] for name, model in zip(names, models, strict=True)}
    costs = [measure_cost(first, name, config.device, on_progress) for name, first in firsts.items()]
    runs = {name: first.run for name, first in firsts.items() if first.run is not None}
    data, reading = _locate_data(config.data, list(runs.values()))
    return Comparison(
        names=names,
        runs=tuple(model.given for model in models),
        trainings=counts,
        n=n,
        source=_name_faces(config.data, config.split, whole),
        age=age,
        gender=gender,
        costs=costs,
        biases=measure_biases(tables),
        groups=find_group_differences(names, tables),
        verdict=write_verdict(names, n, age, gender, costs, counts, trained=config.split == "train"),
        notices=tuple(dict.fromkeys(notices)),
        predictions=tables,
        curves={name: run.read_epochs() for name, run in runs.items()},
        missing_curves={
            name: reason for name, model in zip(names, models, strict=True) if (reason := model.missing_curves)
        },
        data=data,
        reading=reading,
        sources=measure_sources(names, tables),
    )


def _check_data(names: Sequence[str], models: Sequence[ComparedModel], data: tuple[str, ...]) -> None:
    """Check that there are faces to compare on: those of the runs, or ``data``."""
    without_run = [name for name, model in zip(names, models, strict=True) if model.trainings[0].run is None]
    if without_run and not data:
        raise AgegenError(f"{without_run[0]} has no run folder and therefore no test faces. Give --data PATH.")


def _locate_data(data: tuple[str, ...], runs: Sequence[RunFolder]) -> tuple[tuple[str, ...], ReadOptions]:
    """Return the datasets whose faces are compared, and how they are read: the given ones, or those of the runs."""
    if data:
        return data, DEFAULT_READ_OPTIONS
    record = runs[0].read()
    return list_sources(record), DEFAULT_READ_OPTIONS.fill_from(record)


def _name_faces(data: tuple[str, ...], split: str, whole: bool) -> str:
    """Return a description of the compared faces; ``whole`` if they are all that each model was tested on."""
    if data or split != "test":
        return f"split '{split}' of {' + '.join(data) or 'the runs’ data'}"
    return "all test faces" if whole else "the common test faces"


def collect_predictions(
    trainings: list[ComparedRun], config: CompareConfig, on_progress: ProgressHook
) -> tuple[list[pd.DataFrame], list[str]]:
    """Return each training's predictions, with the column ``seen``, and notices.

    The predictions are those that the run folder has for its test set, otherwise computed now. ``seen`` marks faces
    that this or, for predictions from run folders, any of the trainings has seen, or a near-duplicate of them.
    """
    runs = [training.run for training in trainings if training.run is not None]
    if not config.data and config.split == "test":
        splits = [read_training_split(run) for run in runs]
        kept = [read_predictions(run.verify(run.predictions)) for run in runs]
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


def mark_seen(table: pd.DataFrame, own: TrainingSplit, splits: Sequence[TrainingSplit]) -> pd.DataFrame:
    """Return predictions with the column ``seen``: whether any of the trainings with these splits has seen the face.

    ``own``: the split of the training that made the predictions; it knows the faces' perceptual hashes.
    """
    sha256 = list(table["sha256"])
    hashes = own.find_hashes(sha256)
    return table.assign(seen=np.any([split.find_seen(sha256, hashes) for split in splits], axis=0))


def align_predictions(
    names: Sequence[str], models: Sequence[ComparedModel], tables: list[pd.DataFrame], split: str
) -> tuple[dict[str, list[pd.DataFrame]], bool]:
    """Return the predictions of each model, a table per training, for the faces that all have and none has seen.

    All tables have the same faces in the same order. With the split ``train``, seen faces are kept. Also returns
    whether these are all faces of every table.

    Raises:
        AgegenError: there are fewer than 30 such faces, or their labels differ between the tables.
    """
    tables = [table.drop_duplicates("sha256").set_index("sha256", drop=False) for table in tables]
    common = set.intersection(*(set(table.index) for table in tables))
    if split != "train":
        for table in tables:
            common -= set(table.index[table["seen"]])
    if len(common) < MIN_FACES:
        owners = [name for name, model in zip(names, models, strict=True) for _ in model.trainings]
        counts = ", ".join(f"{name} {len(table):,}" for name, table in zip(owners, tables, strict=True))
        raise AgegenError(
            f"cannot compare these models: only {len(common)} faces are in every test set ({counts}) and in no "
            "training set. Train with the same data and --seed or --split-file, and not from weights (--init) that "
            "have seen these faces, or give --data."
        )
    order = [digest for digest in tables[0].index if digest in common]
    ordered = [table.loc[order].drop(columns="seen").reset_index(drop=True) for table in tables]
    _check_labels(ordered)
    if any(table["estimated_age"].isna().all() for table in ordered):
        # Of a model that was trained without ages: only the genders can be compared.
        ordered = [drop_ages(table) for table in ordered]
    rest = iter(ordered)
    aligned = {name: [next(rest) for _ in model.trainings] for name, model in zip(names, models, strict=True)}
    return aligned, all(len(table) == len(order) for table in tables)


def _check_labels(tables: list[pd.DataFrame]) -> None:
    first, *others = tables
    for table in others:
        if any(not first[name].equals(table[name]) for name in _LABEL_COLUMNS if name in first.columns):
            raise AgegenError("cannot compare these models: the same faces have different labels in their data")


def measure_sources(names: tuple[str, ...], tables: dict[str, pd.DataFrame]) -> list[SourceRow]:
    """Return a row per dataset; none if all faces are from one dataset."""
    first = tables[names[0]]
    if SOURCE_COLUMN not in first.columns:
        return []
    rows = []
    for source in first[SOURCE_COLUMN].unique():
        inside = (first[SOURCE_COLUMN] == source).to_numpy()
        cells = _measure_source({name: tables[name][inside] for name in names})
        rows.append(SourceRow(str(source), int(inside.sum()), cells))
    return rows


def _measure_source(tables: dict[str, pd.DataFrame]) -> list[SourceCell]:
    """Return the metrics of each model, from its predictions on the faces of one dataset."""
    specs: list[MetricSpec[Any]] = []
    for table in tables.values():
        labels = read_labels(table)
        age, p_female = (table[column].to_numpy(dtype=float) for column in ("estimated_age", "p_female"))
        low, high = labels.low.astype(float), labels.high.astype(float)
        exact, bracketed, gendered = labels.exact, labels.bracketed, labels.gendered
        specs += [
            define_age_metrics(age[exact], low[exact]),
            define_bracket_metrics(age[bracketed], widen_brackets(low[bracketed], high[bracketed])),
            define_gender_metrics(p_female[gendered], np.asarray(labels.female[gendered] > 0.5)),
        ]
    measured = iter(measure_all(specs))
    return [SourceCell(name, next(measured).mae, next(measured).in_bracket, next(measured).accuracy) for name in tables]


def write_verdict(
    names: tuple[str, ...],
    n: int,
    age: list[MetricRow],
    gender: list[MetricRow],
    costs: list[Cost],
    trainings: tuple[int, ...] = (),
    trained: bool = False,
) -> str:
    """Return a sentence about all models, derived from the numbers alone; each later model is compared to the first.

    Args:
        names: of all models.
        n: the number of faces.
        age: the rows of the age table, and ``gender`` those of the gender table.
        gender: see ``age``.
        costs: of each model.
        trainings: the number of trainings of each model; by default one.
        trained: whether the faces are those of the training set.
    """
    counts = trainings or (1,) * len(names)
    several = min(counts) > 1
    rows = [("age", row) for row in age if row.name in ("mae", "in_bracket")][:1]
    rows += [("gender", row) for row in gender[:1]]
    pair = len(names) == 2
    faces = f"faces that {'both were' if pair else 'all were'} trained on"
    if not trained:
        faces = f"faces that {'neither' if pair else 'none of them'} was trained on"
    if pair:
        prefix = "" if several else "this training of "
        found = ", and ".join(_phrase_difference(task, row, names, prefix) for task, row in rows)
    else:
        found = _phrase_many(rows, names)
    spent = ", ".join(_phrase_cost(name, cost) for name, cost in zip(names, costs, strict=True))
    scope = "This compares one training of each model, not the models in general"
    if several:
        each = [
            f"{count} {'trainings ' * (not place)}of {name}"
            for place, (name, count) in enumerate(zip(names, counts, strict=True))
        ]
        scope = f"This compares the models, with {join_words(each)}"
    # The costs of many models make a second sentence.
    return f"On {n:,} {faces}, {found}{'; ' if pair else '. '}{spent}. {scope}."


def join_words(words: Sequence[str]) -> str:
    """Return words as a list in a sentence: a, b and c."""
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def _phrase_difference(task: str, row: MetricRow, names: tuple[str, ...], prefix: str) -> str:
    """Return which of two models is better at a task."""
    measure = _MEASURES[row.name]
    values = [_format_measure(row.name, metric) for metric in row.values]
    better = row.better[0]
    if better is None:
        return f"{task} shows no clear difference ({measure} {values[0]} for {names[0]} and {values[1]} for {names[1]})"
    best, other = (0, 1) if better == names[0] else (1, 0)
    return f"{prefix}{better} is better at {task} ({measure} {values[best]} versus {values[other]})"


def _phrase_many(rows: Sequence[tuple[str, MetricRow]], names: tuple[str, ...]) -> str:
    """Return how each later model compares to the first at each task."""
    first = ", ".join(f"{_MEASURES[row.name]} {_format_measure(row.name, row.values[0])}" for _, row in rows)
    phrases = []
    for place, name in enumerate(names[1:], start=1):
        parts = []
        for task, row in rows:
            better = row.better[place - 1]
            verdict = "not clearly different" if better is None else "better" if better == name else "worse"
            parts.append(f"{verdict} at {task} ({_format_measure(row.name, row.values[place])})")
        phrases.append(f"{name} is {join_words(parts)}")
    return f"compared to {names[0]} ({first}): {'; '.join(phrases)}"


def _format_measure(name: str, metric: Metric) -> str:
    return f"{metric.value:.2f} years" if name == "mae" else f"{metric.value * 100:.1f} %"


def _phrase_cost(name: str, cost: Cost) -> str:
    once = f" after {cost.feature_minutes:.0f} for its features" if cost.feature_minutes else ""
    spent = "" if cost.minutes is None else f" in {format_count(round(cost.minutes), 'minute')}"
    return f"{name} trained {cost.trainable / 1e6:.2f}M parameters{spent}{once}"
