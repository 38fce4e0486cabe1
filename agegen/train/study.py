"""Studies: several trainings of one model that answer one question, in one folder.

``--folds K`` trains once for each part of a cross-validation, ``--seeds N`` once for each of several seeds.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agegen.data.manifests import ReadOptions
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
from agegen.errors import AgegenError, CheckpointError, TrainingInterrupted
from agegen.evaluate.estimates import read_predictions, write_predictions
from agegen.evaluate.evaluation import round_number
from agegen.evaluate.study import OUT_OF_FOLD
from agegen.faces.matching import load_cropped
from agegen.files import write_json
from agegen.machine import choose_compute
from agegen.runs import STUDY_FILE, RunFolder, create_run, list_sources
from agegen.train.config import TrainConfig, read_config, resolve_sources
from agegen.train.loop import PartStart, StudyEvent, StudyResult
from agegen.train.record import format_time
from agegen.train.train import train_run

if TYPE_CHECKING:
    import pandas as pd


# Of eval.json: what each part of a report is summarised by.
_PARTS = ("age", "bracket", "gender", "interval")


def summarize_study(path: Path, kind: str, model: str, parts: list[RunFolder]) -> dict[str, Any]:
    """Write and return ``folds.json`` or ``seeds.json``; of folds also ``out_of_fold.parquet``.

    ``spread`` is the standard deviation between trainings (n - 1), not that of the mean.
    """
    reports = [json.loads(run.evaluation.read_text(encoding="utf-8")) for run in parts]
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
    """Return the metrics of a report by their names, without intervals."""
    flat: dict[str, float | None] = {}
    for part in _PARTS:
        flat |= {name: value for name, value in report.get(part, {}).items() if not name.endswith("_ci95")}
    return flat


def write_out_of_fold(path: Path, parts: list[RunFolder], teacher: str) -> None:
    """Write the estimates of each face by the training that didn't see it, with the column ``fold``."""
    import pandas as pd

    tables: list[pd.DataFrame] = [
        read_predictions(run.predictions).assign(fold=number) for number, run in enumerate(parts, start=1)
    ]
    write_predictions(path, pd.concat(tables, ignore_index=True), teacher)


# What may differ between two calls that work on one study.
_FREE = ("out", "resume", "workers", "cache_dir", "save_every", "device")


@dataclass(frozen=True)
class StudyConfig:
    """Options of ``agegen train`` with ``--folds`` or ``--seeds``.

    ``train`` holds what is common to all trainings; its ``out`` is the study's folder. ``fold`` asks for one training
    of a cross-validation, None for all that aren't finished.
    """

    train: TrainConfig
    folds: int | None = None
    fold: int | None = None
    seeds: int | None = None


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
        """Return the run folders of all trainings, whether they are there or not."""
        numbers = range(1, self.count + 1) if self.kind == "folds" else range(self.count)
        return [RunFolder(self.path / f"{self.kind.removesuffix('s')}-{number}") for number in numbers]

    def locate_split(self, number: int) -> Path:
        """Return the split file of a training, counted from 0."""
        return self.path / "splits" / (f"fold-{number + 1}.csv" if self.kind == "folds" else "all.csv")


def train_study(
    config: StudyConfig,
    on_progress: ProgressHook = ignore_progress,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[StudyEvent]:
    """Train what of a study isn't finished, and yield what happens; where all is, its summary comes last.

    Raises:
        TrainingInterrupted: ``should_stop`` said yes; the study goes on with ``--resume``.
        AgegenError: whatever the user can put right.
    """
    started = time.time()
    dist = init_distributed(choose_compute(config.train.device, config.train.precision).device)
    study = dist.run_on_main(
        lambda: open_study(config.train.resume) if config.train.resume else begin_study(config, started)
    )
    free = {name: getattr(config.train, name) for name in _FREE if name not in ("out", "resume")}
    study = replace(study, config=replace(study.config, **free))
    dist.run_on_main(lambda: write_splits(study, on_progress))
    parts = study.list_parts()
    if config.fold is not None and not 1 <= config.fold <= study.count:
        raise AgegenError(f"--fold is a number from 1 to {study.count}")
    for number, run in enumerate(parts):
        if is_finished(run) or (config.fold is not None and number != config.fold - 1):
            continue
        yield PartStart(run.path, number + 1, study.count, study.kind)
        try:
            yield from train_run(dist.run_on_main(partial(configure_part, study, number)), on_progress, should_stop)
        except TrainingInterrupted as error:
            where = f"{run.path.name} of {study.count} {study.kind}"
            raise TrainingInterrupted(
                f"interrupted in {where}; go on with `agegen train --resume {study.path}`"
            ) from error
    if dist.is_main and all(is_finished(run) for run in parts):
        summary = summarize_study(study.path, study.kind, study.config.model, parts)
        yield StudyResult(study.path, summary, time.time() - started)


def read_study(path: Path, given: dict[str, Any], fold: int | None = None) -> StudyConfig:
    """Return the options with which a study goes on.

    Args:
        path: its folder.
        given: options of this call by their names in :class:`TrainConfig`; None where nothing was given.
        fold: the one to train; None for all.

    Raises:
        AgegenError: it can't be used, or an option contradicts it.
    """
    study = open_study(path)
    free = {name: value for name, value in given.items() if value is not None and name in _FREE}
    kept = _list_options(study.config)
    fixed = {name: value for name, value in given.items() if value is not None and name not in _FREE}
    if clashes := [name for name, value in fixed.items() if _phrase(value) != _phrase(kept.get(name))]:
        said = ", ".join(f"--{name.replace('_', '-')}" for name in clashes)
        raise AgegenError(f"{path} was begun without {said}, or with another value; leave that out, or begin anew")
    return StudyConfig(replace(study.config, **(free | {"resume": path})), fold=fold)


def begin_study(config: StudyConfig, started: float) -> Study:
    """Make the folder of a new study, or open the one that ``--out`` names, which must have the same options.

    Raises:
        AgegenError: the numbers make no sense, the folder holds something else, or its study has other options.
    """
    kind, count = ("folds", config.folds) if config.folds is not None else ("seeds", config.seeds)
    if count is None or count < 2 or (config.folds is not None and config.seeds is not None):
        raise AgegenError("give --folds K or --seeds N, at least 2 of either, not both")
    common = replace(config.train, out=None, data=resolve_sources(config.train.data))
    out = config.train.out
    if out is not None and (out / STUDY_FILE).is_file():
        kept = open_study(out)
        if (kept.kind, kept.count, _list_fixed(kept.config)) != (kind, count, _list_fixed(common)):
            raise AgegenError(f"{out} holds a study with other options; choose another --out, or --resume {out}")
        return kept
    study = Study(create_run(out, f"{config.train.model}-{kind}").path, kind, count, common)
    content = {"kind": kind, "count": count, "started": format_time(started), "options": _list_options(study.config)}
    write_json(study.path / STUDY_FILE, content)
    return study


def open_study(path: Path) -> Study:
    """Return a study that was begun before.

    Raises:
        CheckpointError: its ``study.json`` can't be used.
    """
    try:
        content = json.loads((path / STUDY_FILE).read_text(encoding="utf-8"))
        options = {name: _restore(name, value) for name, value in content["options"].items()}
        return Study(path, str(content["kind"]), int(content["count"]), TrainConfig(**options))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / STUDY_FILE} is damaged: {error}") from error


def write_splits(study: Study, on_progress: ProgressHook) -> None:
    """Write the split of each training, where they aren't there yet.

    Folds are drawn over all faces; with ``--split-file``, over its training part alone, and the rest stays unused.
    """
    wanted = [study.locate_split(number) for number in range(study.count)]
    if all(path.is_file() for path in wanted):
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
    wanted[0].parent.mkdir(exist_ok=True)
    if study.kind == "seeds":
        write_split(wanted[0], split_scan(scan, config.seed, shares) if given is None else given)
        return
    for path, split in zip(wanted, make_folds(scan, given, study.count, config.seed), strict=True):
        write_split(path, split)


def make_folds(scan: Scan, given: pd.DataFrame | None, count: int, seed: int) -> Iterator[pd.DataFrame]:
    """Yield the split of each fold: of all faces, or of the training part of a split that is ``given``."""
    groups = group_faces(scan) if given is None else given["group"].to_numpy()
    inside = None if given is None else (given["split"] == "train").to_numpy()
    folds = assign_folds(scan, groups, count, seed, inside)
    for fold in range(1, count + 1):
        yield tabulate_split(scan, groups, make_fold_split(scan, groups, folds, fold, seed))


def configure_part(study: Study, number: int) -> TrainConfig:
    """Return the options of one training of a study, counted from 0; one that was begun goes on."""
    run = study.list_parts()[number]
    if (run.path / "run.json").is_file():
        return read_config(run.path, {name: getattr(study.config, name) for name in _FREE if name != "resume"})
    # Killed before it had anything to go on with.
    shutil.rmtree(run.path, ignore_errors=True)
    seed = study.config.seed + (number if study.kind == "seeds" else 0)
    split = study.locate_split(number)
    kept = study.kind == "folds"
    return replace(study.config, out=run.path, split_file=split, protocol=None, seed=seed, distributions=kept)


def is_finished(run: RunFolder) -> bool:
    """Return whether a training of a study is over."""
    return (run.path / "run.json").is_file() and bool(run.read().get("finished"))


def _phrase(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _list_options(config: TrainConfig) -> dict[str, Any]:
    plain = asdict(config)
    return {name: str(value) if isinstance(value, Path) else value for name, value in plain.items()}


def _list_fixed(config: TrainConfig) -> dict[str, Any]:
    return {name: value for name, value in _list_options(config).items() if name not in _FREE}


def _restore(name: str, value: Any) -> Any:
    kinds = {field.name: str(field.type) for field in fields(TrainConfig)}
    if value is not None and "Path" in kinds[name]:
        return Path(value)
    return tuple(value) if isinstance(value, list) else value
