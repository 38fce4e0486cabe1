"""Compare trained runs on the same faces: paired differences with intervals, cost, groups, a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agegen.compare.costs import Cost, measure_cost
from agegen.compare.differences import LEAST_FACES, GroupDifference, MetricRow, find_group_differences, measure_rows
from agegen.data.scan import ProgressHook, ignore_progress
from agegen.data.splits import read_split
from agegen.errors import AgegenError
from agegen.evaluate.estimates import read_predictions
from agegen.evaluate.evaluate import EvalConfig, evaluate_run
from agegen.evaluate.evaluation import round_number
from agegen.evaluate.metrics import Metric
from agegen.runs import RunFolder, list_finished_runs, open_run

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class CompareConfig:
    """Options of ``agegen compare``; no ``runs`` stands for the newest finished run of each model."""

    runs: tuple[Path, ...] = ()
    data: str | None = None
    split: str = "test"
    device: str = "auto"
    cache_dir: Path | None = None


@dataclass(frozen=True)
class Comparison:
    """Everything that ``agegen compare`` shows.

    ``predictions`` holds each run's table over the same faces in the same order; ``curves`` its epochs.
    """

    names: tuple[str, ...]
    runs: tuple[Path, ...]
    n: int
    source: str
    age: list[MetricRow]
    gender: list[MetricRow]
    costs: list[Cost]
    groups: list[GroupDifference]
    verdict: str
    notices: tuple[str, ...]
    predictions: dict[str, pd.DataFrame]
    curves: dict[str, pd.DataFrame]
    data: str

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
            "groups": [{**vars(group), "difference": _metric_to_json(group.difference)} for group in self.groups],
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
    tables, source = align_predictions(runs, names, collected, config)
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
        verdict=write_verdict(names, len(first), age, gender, costs),
        notices=tuple(dict.fromkeys(notices)),
        predictions=tables,
        curves={name: run.read_epochs() for name, run in zip(names, runs, strict=True)},
        data=config.data or str(records[0]["data"]["source"]),
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
    """Return each run's predictions: those that it kept of its test split, else made anew."""
    if config.data is None and config.split == "test":
        return [read_predictions(run.predictions) for run in runs], []
    tables: list[pd.DataFrame] = []
    notices: list[str] = []
    for run in runs:
        chosen = EvalConfig(
            run.path, data=config.data, split=config.split, device=config.device, cache_dir=config.cache_dir
        )
        result = evaluate_run(chosen, on_progress)
        tables.append(result.predictions)
        notices.extend(result.notices)
    return tables, notices


def align_predictions(
    runs: list[RunFolder], names: tuple[str, ...], tables: list[pd.DataFrame], config: CompareConfig
) -> tuple[dict[str, pd.DataFrame], str]:
    """Return the tables over the faces that all have and none was trained on, in one order.

    Raises:
        AgegenError: fewer than 30 such faces, or labels that differ between the runs.
    """
    tables = [table.drop_duplicates("sha256").set_index("sha256", drop=False) for table in tables]
    common = set.intersection(*(set(table.index) for table in tables))
    if config.split != "train":
        for run in runs:
            split = read_split(run.split)
            common -= set(split["sha256"][split["split"] == "train"])
    if len(common) < LEAST_FACES:
        counts = ", ".join(f"{name} {len(table):,}" for name, table in zip(names, tables, strict=True))
        raise AgegenError(
            f"these runs can't be compared: only {len(common)} faces are in the test set of each ({counts}) and in "
            "nobody's training split; train with the same data and --seed, or with --split-file, or give --data"
        )
    order = [digest for digest in tables[0].index if digest in common]
    aligned = {name: table.loc[order].reset_index(drop=True) for name, table in zip(names, tables, strict=True)}
    _check_labels(aligned)
    faces = "all test faces" if all(len(table) == len(order) for table in tables) else "the common test faces"
    whole = config.data is not None or config.split != "test"
    return aligned, f"split '{config.split}' of {config.data or 'the runs’ data'}" if whole else faces


def _check_labels(tables: dict[str, pd.DataFrame]) -> None:
    first, *others = tables.values()
    for table in others:
        if not (first["age"].equals(table["age"]) and first["female"].equals(table["female"])):
            raise AgegenError("these runs can't be compared: the same faces have different labels in their data")


def _metric_to_json(metric: Metric) -> dict[str, Any]:
    interval = [round_number(metric.low), round_number(metric.high)]
    return {"value": round_number(metric.value), "ci95": None if interval[0] is None else interval}


def write_verdict(
    names: tuple[str, ...], n: int, age: list[MetricRow], gender: list[MetricRow], costs: list[Cost]
) -> str:
    """Return one plain sentence on the first two runs, made from the numbers alone."""
    mae, accuracy = age[0], gender[0]
    years = tuple(f"{metric.value:.2f}" for metric in mae.values[:2])
    shares = tuple(f"{metric.value * 100:.1f} %" for metric in accuracy.values[:2])
    trained = [_phrase_cost(name, cost) for name, cost in zip(names[:2], costs[:2], strict=True)]
    return (
        f"On {n:,} faces that neither model trained on, "
        f"{_phrase('age', 'an MAE', names, years, ' years', mae)}, and "
        f"{_phrase('gender', 'an accuracy', names, shares, '', accuracy)}; {trained[0]}, {trained[1]}."
    )


def _phrase(task: str, measure: str, names: tuple[str, ...], values: tuple[str, ...], unit: str, row: MetricRow) -> str:
    better = row.better[0]
    if better is None:
        both = " and ".join(f"{value}{unit} for {name}" for name, value in zip(names, values, strict=False))
        return f"{task} shows no clear difference ({measure} of {both})"
    best, other = (0, 1) if better == names[0] else (1, 0)
    return f"{better} is better at {task} ({measure} of {values[best]} against {values[other]}{unit})"


def _phrase_cost(name: str, cost: Cost) -> str:
    once = f" after {cost.feature_minutes:.0f} for its features" if cost.feature_minutes else ""
    return f"{name} trained {cost.trainable / 1e6:.2f}M parameters in {cost.minutes:.0f} minutes{once}"
