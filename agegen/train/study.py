"""Studies: several trainings of one model in one folder.

``--folds K`` cross-validates, ``--seeds N`` repeats a training with other seeds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from agegen.data.scan import ProgressHook, Scan, ignore_progress, scan_images
from agegen.data.splits import (
    apply_protocol,
    apply_split,
    assign_folds,
    find_protocol,
    group_faces,
    make_fold_split,
    read_split,
    split_scan,
    tabulate_split,
    write_split,
)
from agegen.distributed import init_distributed
from agegen.errors import AgegenError, TrainingInterrupted
from agegen.evaluate.estimates import read_predictions, write_predictions
from agegen.evaluate.evaluation import round_number
from agegen.evaluate.study import OUT_OF_FOLD
from agegen.faces.matching import load_cropped
from agegen.files import Limits, Schema, write_json
from agegen.machine import choose_compute
from agegen.options import ReadOptions, from_plain, select_fields, to_plain
from agegen.runs import STUDY_FILE, RunFolder, create_run, list_sources, read_json
from agegen.train.config import StudyConfig, TrainConfig, read_config, reject_changes, resolve_paths
from agegen.train.loop import PartStart, StudyEvent, StudyResult
from agegen.train.record import format_time
from agegen.train.train import train_and_finish

if TYPE_CHECKING:
    import pandas as pd

# The parts of eval.json whose metrics the summary averages.
_METRIC_PARTS = ("age", "bracket", "gender", "interval")


@dataclass(frozen=True)
class Study:
    """A study's folder: ``study.json``, ``splits/``, a run folder for each training, and the summary.

    ``kind`` is ``folds`` or ``seeds``, ``count`` their number.
    """

    path: Path
    kind: str
    count: int
    config: TrainConfig

    def list_parts(self) -> list[RunFolder]:
        """Return the run folders of all trainings, which need not exist yet."""
        numbers = range(1, self.count + 1) if self.kind == "folds" else range(self.count)
        return [RunFolder(self.path / f"{self.kind.removesuffix('s')}-{number}") for number in numbers]

    def locate_split(self, number: int) -> Path:
        """Return the split file of a training, counted from 0."""
        return self.path / "splits" / (f"fold-{number + 1}.csv" if self.kind == "folds" else "all.csv")


class _StudyRecord(Schema):
    """The schema of ``study.json``."""

    kind: Literal["folds", "seeds"]
    count: Annotated[int, Limits(min=2)]
    options: TrainConfig


def train_study(
    config: StudyConfig,
    on_progress: ProgressHook = ignore_progress,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[StudyEvent]:
    """Train the unfinished parts of a study and yield their events; the summary follows when all are finished.

    Raises:
        TrainingInterrupted: ``should_stop`` returned True; ``--resume`` resumes the study.
        AgegenError: any error that the user can fix.
    """
    started = time.time()
    dist = init_distributed(choose_compute(config.train.device, config.train.precision).device)
    study = dist.run_on_main(lambda: _open_or_begin(config, started))
    parts = study.list_parts()
    if config.fold is not None and not 1 <= config.fold <= study.count:
        raise AgegenError(f"--fold must be between 1 and {study.count}")
    dist.run_on_main(lambda: write_splits(study, on_progress))
    for number, run in enumerate(parts):
        if is_finished(run) or (config.fold is not None and number != config.fold - 1):
            continue
        yield PartStart(run.path, number + 1, study.count, study.kind)
        try:
            yield from train_and_finish(
                dist.run_on_main(partial(configure_part, study, number)), on_progress, should_stop
            )
        except TrainingInterrupted as error:
            raise TrainingInterrupted(
                f"interrupted in {run.path.name} of {study.count} {study.kind}; resume with "
                f"`agegen train --resume {study.path}`"
            ) from error
    if dist.is_main and all(is_finished(run) for run in parts):
        summary = summarize_study(study.path, study.kind, study.config.model, parts)
        yield StudyResult(study.path, summary, time.time() - started)


def _open_or_begin(config: StudyConfig, started: float) -> Study:
    """Return the study to resume, or a new one, with the free options of this call."""
    study = open_study(config.train.resume) if config.train.resume else begin_study(config, started)
    never = select_fields(TrainConfig, resume="never")
    names = (name for name in select_fields(TrainConfig, study="free") if name not in never)
    free = {name: getattr(config.train, name) for name in names}
    return replace(study, config=replace(study.config, **free))


def begin_study(config: StudyConfig, started: float) -> Study:
    """Create the folder of a new study, or open the one that ``--out`` names if it has the same options.

    Raises:
        AgegenError: the numbers are invalid, the folder is not empty, or it is a study with other options.
    """
    kind, count = ("folds", config.folds) if config.folds is not None else ("seeds", config.seeds)
    if count is None or count < 2 or (config.folds is not None and config.seeds is not None):
        raise AgegenError("choose --folds K or --seeds N, with a number of at least 2")
    given = {field.name: getattr(config.train, field.name) for field in fields(config.train)}
    common = TrainConfig(**(resolve_paths(given) | {"out": None}))
    out = config.train.out
    if out is not None and (out / STUDY_FILE).is_file():
        existing = open_study(out)
        if (existing.kind, existing.count, _list_fixed(existing.config)) != (kind, count, _list_fixed(common)):
            raise AgegenError(f"{out} is a study with other options; choose another --out, or --resume {out}")
        return existing
    study = Study(create_run(out, f"{config.train.model}-{kind}").path, kind, count, common)
    content = {"kind": kind, "count": count, "started": format_time(started), "options": to_plain(study.config)}
    write_json(study.path / STUDY_FILE, content)
    return study


def open_study(path: Path) -> Study:
    """Return an existing study.

    Raises:
        CheckpointError: its ``study.json`` is missing or damaged.
    """
    content = read_json(path / STUDY_FILE, _StudyRecord)
    return Study(path, content["kind"], content["count"], TrainConfig(**from_plain(TrainConfig, content["options"])))


def read_study(path: Path, given: dict[str, Any], fold: int | None = None) -> StudyConfig:
    """Return the options with which to resume a study.

    Args:
        path: its folder.
        given: the options given now, by their names in :class:`TrainConfig`.
        fold: the one to train; None for all.

    Raises:
        AgegenError: the study cannot be used, or an option differs from its own.
    """
    study = open_study(path)
    free = select_fields(TrainConfig, study="free")
    reject_changes(path, to_plain(study.config), given, free)
    changed = {name: value for name, value in given.items() if name in free}
    return StudyConfig(replace(study.config, **(changed | {"resume": path})), fold=fold)


def _list_fixed(config: TrainConfig) -> dict[str, Any]:
    free = select_fields(TrainConfig, study="free")
    return {name: value for name, value in to_plain(config).items() if name not in free}


def write_splits(study: Study, on_progress: ProgressHook) -> None:
    """Write the split files of all trainings that do not exist yet.

    Folds are drawn from all faces or, with ``--split-file``, from its training split; the other faces are unused.
    """
    paths = [study.locate_split(number) for number in range(study.count)]
    if all(path.is_file() for path in paths):
        return
    config = study.config
    reading = ReadOptions(config.age_column, config.gender_codes)
    scan = scan_images(load_cropped(config.data, reading, config.detector), None, on_progress)
    given, shares = None, None
    if config.protocol is not None:
        protocol = find_protocol(config.protocol)
        scan, shares = apply_protocol(scan, protocol), protocol.shares
    if config.split_file is not None:
        scan, given = apply_split(scan, read_split(config.split_file), str(config.split_file))
    paths[0].parent.mkdir(exist_ok=True)
    if study.kind == "seeds":
        write_split(paths[0], split_scan(scan, config.seed, shares) if given is None else given)
        return
    for path, split in zip(paths, make_folds(scan, given, study.count, config.seed), strict=True):
        write_split(path, split)


def make_folds(scan: Scan, given: pd.DataFrame | None, count: int, seed: int) -> Iterator[pd.DataFrame]:
    """Yield the split of each fold: of all faces, or of the training split of a ``given`` one."""
    groups = group_faces(scan) if given is None else given["group"].to_numpy()
    inside = None if given is None else (given["split"] == "train").to_numpy()
    folds = assign_folds(scan, groups, count, seed, inside)
    for fold in range(1, count + 1):
        yield tabulate_split(scan, groups, make_fold_split(scan, groups, folds, fold, seed))


def configure_part(study: Study, number: int) -> TrainConfig:
    """Return the options of one training of a study, counted from 0; a training that was started is resumed."""
    run = study.list_parts()[number]
    if (run.path / "run.json").is_file():
        free = select_fields(TrainConfig, resume="free")
        return read_config(run.path, {name: getattr(study.config, name) for name in free})
    is_fold = study.kind == "folds"
    return replace(
        study.config,
        out=run.path,
        split_file=study.locate_split(number),
        protocol=None,
        seed=study.config.seed + (0 if is_fold else number),
        distributions=is_fold,
    )


def is_finished(run: RunFolder) -> bool:
    """Return whether a training of a study is finished."""
    return (run.path / "run.json").is_file() and bool(run.read().get("finished"))


def summarize_study(path: Path, kind: str, model: str, parts: list[RunFolder]) -> dict[str, Any]:
    """Write and return ``folds.json`` or ``seeds.json``; for folds also write ``out_of_fold.parquet``.

    ``spread`` is the standard deviation between trainings (n − 1), not the standard error of the mean.
    """
    reports = [run.read_evaluation() for run in parts]
    rows = [
        {"run": run.path.name, "n": report["n"], "metrics": pick_metrics(report)}
        for run, report in zip(parts, reports, strict=True)
    ]
    names = [name for name in rows[0]["metrics"] if all(row["metrics"].get(name) is not None for row in rows)]
    values = {name: np.array([row["metrics"][name] for row in rows]) for name in names}
    first = parts[0].read()
    summary = {
        "model": model,
        "kind": kind,
        "data": list(list_sources(first)),
        "count": len(parts),
        "parts": rows,
        "mean": {name: round_number(float(value.mean())) for name, value in values.items()},
        "spread": {name: round_number(float(value.std(ddof=1))) for name, value in values.items()},
    }
    if kind == "folds":
        plugin = first["plugin"]
        teacher = f"{model} ({plugin['distribution']} {plugin['version']}), {len(parts)} folds"
        write_out_of_fold(path / OUT_OF_FOLD, parts, teacher)
    write_json(path / f"{kind}.json", summary)
    return summary


def pick_metrics(report: dict[str, Any]) -> dict[str, float | None]:
    """Return the metrics of a report by name, without confidence intervals."""
    metrics: dict[str, float | None] = {}
    for part in _METRIC_PARTS:
        metrics |= {name: value for name, value in report.get(part, {}).items() if not name.endswith("_ci95")}
    return metrics


def write_out_of_fold(path: Path, parts: list[RunFolder], teacher: str) -> None:
    """Write the estimates of all faces, each by the training whose test split it is in, with a column ``fold``."""
    import pandas as pd

    tables: list[pd.DataFrame] = [
        read_predictions(run.predictions).assign(fold=number) for number, run in enumerate(parts, start=1)
    ]
    write_predictions(path, pd.concat(tables, ignore_index=True), teacher)
