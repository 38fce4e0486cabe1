"""The record of a training: ``run.json``, the metadata of its checkpoint, and what the user sees at its start."""

from __future__ import annotations

import platform
import shlex
import time
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from agegen.batches.cache_folder import choose_cache_dir
from agegen.batches.images import choose_workers
from agegen.batches.sources import SourceOptions
from agegen.data.labels import SPLITS, format_gender
from agegen.data.loading import make_absolute
from agegen.data.records import CropBox
from agegen.data.scan import Scan
from agegen.data.soft_labels import DistillationTargets
from agegen.data.splits import count_leaking_groups, fingerprint_labels, fingerprint_split
from agegen.errors import format_count
from agegen.faces.matching import make_crop_notices
from agegen.machine import Compute, count_cores, read_cpu_capabilities
from agegen.model.network import count_parameters
from agegen.options import to_plain
from agegen.train.config import TrainConfig, resolve_paths
from agegen.train.loop import EpochResult, TrainStart, syncs_norms
from agegen.train.setup import TrainingContext, sees_ages

if TYPE_CHECKING:
    import pandas as pd

_LIBRARIES = ("agegen", "torch", "timm", "albumentations", "numpy")
# How many excluded files or rows a notice names.
_EXCLUDED_SHOWN = 5


def begin_record(config: TrainConfig, training: TrainingContext, started: float) -> dict[str, Any]:
    """Return ``run.json`` at the start: a new one, or that of the resumed run with the time of resuming added."""
    if config.resume is None:
        return make_record(config, training, started)
    record = training.run.read()
    record["resumed"] = [*record.get("resumed", []), format_time(started)]
    return record


def make_record(config: TrainConfig, training: TrainingContext, started: float) -> dict[str, Any]:
    """Return the content of ``run.json`` at the start of a new training."""
    options, settings, scan = training.options, training.settings, training.scan
    total, trainable = count_parameters(training.model)
    resolved = resolve_paths({field.name: getattr(config, field.name) for field in fields(config)})
    chosen = replace(
        TrainConfig(**resolved),
        epochs=settings.epochs,
        batch_size=options.batch_size,
        lr=settings.lr,
        age_balance=options.age_balance,
    )
    return {
        "model": training.plugin.name,
        "plugin": {"distribution": training.plugin.distribution, "version": training.plugin.version},
        "options": to_plain(chosen),
        "settings": {**asdict(settings), "views": options.views, "compute": str(options.compute)},
        "parameters": {"total": total, "trainable": trainable},
        "data": {
            "source": name_data(config.data),
            "layout": scan.records.layout,
            "trims": _trims_to_json(scan.records.trims),
            "faces": len(training.split),
            "fingerprint": fingerprint_split(training.split),
            "labels": fingerprint_labels(scan),
            "terms": scan.records.terms,
            "counts": count_splits(training.split),
            "split_origin": name_split(config.protocol, config.split_file, scan),
            "leaking_groups": count_leaking_groups(training.split),
            "persons": scan.records.identity_columns,
            "excluded": [asdict(item) for item in scan.records.excluded],
        },
        "teachers": list_teachers(training.distillation),
        "start": None if training.start is None else {"checkpoint": str(training.start), "seen": training.seen},
        "baseline": asdict(training.baseline),
        "command": format_command(config),
        "seed": config.seed,
        "libraries": {name: version(name) for name in _LIBRARIES},
        "machine": {
            "system": platform.platform(),
            "python": platform.python_version(),
            "cores": count_cores(),
            "device": _name_device(options.compute),
        },
        "started": format_time(started),
        "finished": None,
    }


def name_data(data: tuple[str, ...]) -> str | list[str]:
    """Return the datasets by absolute paths; a single one as a string."""
    resolved = make_absolute(data)
    return resolved[0] if len(resolved) == 1 else list(resolved)


def name_split(protocol: str | None, split_file: Path | None, scan: Scan) -> str:
    """Return what decided the split: a ``protocol``, a ``file``, columns of the ``data``, the ``seed``, or both."""
    if protocol is not None:
        return f"protocol {protocol}"
    if split_file is not None:
        return "file"
    frame = scan.records.frame
    if "split" not in frame.columns:
        return "seed"
    return "data and seed" if (frame["split"] == "").any() else "data"


def count_splits(split: pd.DataFrame) -> dict[str, int]:
    """Return the number of faces in each split."""
    return {name: int((split["split"] == name).sum()) for name in SPLITS}


def list_teachers(distillation: DistillationTargets | None) -> list[str]:
    """Return the teachers of the soft labels."""
    return [] if distillation is None else list(distillation.teachers)


def format_command(config: TrainConfig) -> str:
    """Return a command for the same training: all options that differ from their defaults and affect the result."""
    defaults = TrainConfig(config.model, config.data)
    words = ["agegen", "train", "--model", config.model]
    for one in config.data:
        words += ["--data", one]
    for field in fields(config):
        value = getattr(config, field.name)
        if value == getattr(defaults, field.name) or not field.metadata.get("recorded", True):
            continue
        name = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
            continue
        for one in value if isinstance(value, tuple) else (value,):
            words += [f"--{name}", str(one)]
    return shlex.join(words)


def format_time(seconds: float) -> str:
    """Return a time as ISO 8601 in UTC with microseconds, so that sorting by text sorts by time."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1e6):06d}Z"


def _trims_to_json(trims: dict[str, CropBox]) -> dict[str, dict[str, Any]]:
    return {name: asdict(trim) for name, trim in trims.items()}


def _name_device(compute: Compute) -> str:
    if compute.device.type == "cuda":
        return torch.cuda.get_device_name(compute.device)
    return str(read_cpu_capabilities().get("cpu_name", platform.processor()))


def make_checkpoint_notes(training: TrainingContext, epoch: EpochResult) -> dict[str, Any]:
    """Return what a checkpoint holds about its training: all that an evaluation without the run folder needs.

    It leaves out how long the epoch took, so that equal trainings give equal checkpoints.
    """
    times = ("seconds", "images_per_second")
    metrics = {name: value for name, value in epoch_to_json(epoch).items() if name not in times}
    return metrics | {
        "baseline": asdict(training.baseline),
        "terms": training.scan.records.terms,
        "split": fingerprint_split(training.split),
        "seed": training.options.seed,
        "teachers": list_teachers(training.distillation),
        "trims": _trims_to_json(training.scan.records.trims),
    }


def epoch_to_json(epoch: EpochResult) -> dict[str, Any]:
    """Return an epoch's numbers with None for NaN, which JSON does not have."""
    return {name: None if value != value else value for name, value in asdict(epoch).items()}


def make_start_event(training: TrainingContext) -> TrainStart:
    """Return what the user should know before the first epoch."""
    return TrainStart(
        run=training.run.path,
        model=training.plugin.name,
        counts=count_splits(training.split),
        parameters=count_parameters(training.model),
        epochs=training.settings.epochs,
        setting=_describe_setting(training),
        notices=(
            *describe_processes(training.options),
            *describe_start(training.start, training.seen),
            *(f"soft labels of {teacher}" for teacher in list_teachers(training.distillation)),
            *describe_data(training.scan, training.split),
            *_describe_ages(training),
            *make_crop_notices(training.landmarks),
        ),
    )


def _describe_ages(training: TrainingContext) -> list[str]:
    if sees_ages(training):
        return []
    return ["no training face has an age: the age head cannot be trained, and predict will report no age"]


def _describe_setting(training: TrainingContext) -> str:
    options = training.options
    setting = f"{options.compute}, {format_count(torch.get_num_threads(), 'thread')}, batch size {options.batch_size}"
    if training.model.backbone.frozen:
        size = len(training.split) * training.model.backbone.feature_dim * 2 * options.views
        folder = choose_cache_dir(options.cache_dir)
        return f"{setting}, features of {options.views} views per face ({size / 1e9:.1f} GB) in {folder}"
    images = "images in memory" if training.scan.pixels is not None else "images decoded in each epoch"
    return f"{setting}, {format_count(choose_workers(options.workers), 'worker')}, {images}"


def describe_processes(options: SourceOptions) -> list[str]:
    """Return a notice about distributed training: how processes share a batch, and whether they sync batch norms."""
    dist = options.dist
    if dist.world_size == 1:
        return []
    norms = "synchronised" if syncs_norms(dist, options.compute) else "computed per process (gloo cannot sync them)"
    return [f"{dist.world_size} processes share each batch of {options.batch_size}; batch norms: {norms}"]


def describe_start(start: Path | None, seen: dict[str, int]) -> list[str]:
    """Return notices about the weights that a training starts from, and the faces that their training saw."""
    if start is None:
        return []
    lines = [f"starting from the weights of {start}"]
    leaked = {name: count for name, count in seen.items() if count}
    if leaked:
        parts = " and ".join(f"{count:,} {name}" for name, count in leaked.items())
        lines.append(
            f"these weights were trained on {parts} faces of this split: metrics on these faces are optimistic (data "
            "leakage); use the split of their training (--split-file)"
        )
    elif not seen:
        lines.append("it is unknown whether these weights were trained on validation or test faces of this split")
    return lines


def describe_data(scan: Scan, split: pd.DataFrame) -> list[str]:
    """Return notices about the data: their layout, drawn faces, exclusions, near-duplicates, leakage."""
    notices = list(scan.records.notices)
    if scan.records.layout:
        notices.append(f"data: {scan.records.layout}, {format_count(len(scan.records), 'face')}")
    known = scan.records.labels.female[scan.records.labels.gendered]
    if len(known) and known.min() == known.max():
        gender = format_gender(known[0])
        notices.append(
            f"every face is {gender}: the gender head cannot be trained, and predict will report 'uncertain'"
        )
    if scan.records.drawn:
        notices.append("these faces are drawn, not photographed: the model is only useful for trying agegen out")
    if excluded := scan.records.excluded:
        shown = "; ".join(f"{item.path} ({item.reason})" for item in excluded[:_EXCLUDED_SHOWN])
        if (more := len(excluded) - _EXCLUDED_SHOWN) > 0:
            shown += f"; and {more} more"
        notices.append(f"{format_count(len(excluded), 'file or row', 'files or rows')} excluded: {shown}")
    if duplicates := int(split["group"].duplicated(keep=False).sum()):
        notices.append(f"{duplicates} of {len(split)} faces have a near-duplicate")
    if leaks := count_leaking_groups(split):
        notices.append(f"data leakage: {leaks} groups of near-duplicates are in more than one of the given splits")
    return notices
