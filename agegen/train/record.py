"""What is told and written of a training: its start, its data, and ``run.json``."""

from __future__ import annotations

import platform
import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from agegen.batches.cache_folder import choose_cache_dir
from agegen.batches.images import choose_workers
from agegen.data.labels import SPLITS, format_gender
from agegen.data.scan import Scan
from agegen.data.splits import count_leaking_groups, fingerprint_split
from agegen.faces.matching import make_crop_notices
from agegen.machine import Compute, count_cores
from agegen.model.network import count_parameters
from agegen.train.config import TrainConfig, resolve_sources
from agegen.train.loop import BatchResult, EpochResult, TrainStart, syncs_norms
from agegen.train.setup import TrainingContext

if TYPE_CHECKING:
    import pandas as pd

# Where a run lies and what is kept for it changes nothing of the result.
_NOT_IN_COMMAND = ("model", "data", "out", "cache_dir", "workers", "save_every", "distributions", "resume", "compile")
# By then caches are warm, and loaders have either got ahead or fallen behind.
BATCHES = 50
# A training that waits for longer than this share of its time would gain from quicker data.
_LIMIT = 0.1


class BottleneckDetector:
    """Looks at the batches of a training and says once what limits it, after 50 of them or the first epoch.

    ``input_rate`` is what the input could give in images/s, had it the cores to itself.
    """

    def __init__(self, input_rate: float) -> None:
        self._input_rate = input_rate
        self._batches = 0

    def look(self, batch: BatchResult) -> Iterator[str]:
        """Yield the finding, where this batch is the one to say it after."""
        self._batches += 1
        if self._batches == BATCHES or (self._batches < BATCHES and batch.batch == batch.batches and batch.epoch == 1):
            self._batches = BATCHES
            yield describe_limit(batch, self._input_rate)


def begin_record(config: TrainConfig, training: TrainingContext, started: float) -> dict[str, Any]:
    """Return ``run.json`` at the start: a new one, or that of the resumed run with a note of when it went on."""
    if config.resume is None:
        return describe_training(config, training, started)
    record = training.run.read()
    record["resumed"] = [*record.get("resumed", []), format_time(started)]
    return record


def describe_origin(training: TrainingContext) -> dict[str, Any]:
    """Return what a checkpoint says of its data: all that an evaluation without the run folder needs."""
    return {
        "baseline": asdict(training.baseline),
        "terms": training.scan.records.terms,
        "split": fingerprint_split(training.split),
        "seed": training.options.seed,
        "teachers": [] if training.teaching is None else list(training.teaching.teachers),
        "trims": {name: asdict(trim) for name, trim in training.scan.records.trims.items()},
    }


def describe_epoch(epoch: EpochResult) -> dict[str, Any]:
    """Return an epoch's numbers for files: NaN, which is no JSON, as None."""
    return {name: None if value != value else value for name, value in asdict(epoch).items()}


def describe_result(epoch: EpochResult) -> dict[str, Any]:
    """Return what an epoch came to, without the times that it took: equal trainings give equal checkpoints."""
    times = ("seconds", "images_per_second")
    return {name: value for name, value in describe_epoch(epoch).items() if name not in times}


def announce_training(training: TrainingContext) -> TrainStart:
    """Return what to tell the user before the first epoch."""
    options = training.options
    setting = f"{options.compute}, {torch.get_num_threads()} threads, batches of {options.batch_size}"
    if training.model.backbone.frozen:
        size = len(training.split) * training.model.backbone.feature_dim * 2 * options.views
        setting += (
            f", {options.views} views of each face ({size / 1e9:.1f} GB) in {choose_cache_dir(options.cache_dir)}"
        )
    else:
        kept = "in memory" if training.scan.pixels is not None else "decoded in each epoch"
        setting += f", {choose_workers(options.workers)} loader processes, pictures {kept}"
    return TrainStart(
        run=training.run.path,
        model=training.plugin.name,
        counts=count_splits(training.split),
        parameters=count_parameters(training.model),
        epochs=training.settings.epochs,
        setting=setting,
        notices=tuple(list_notices(training)),
    )


def describe_data(scan: Scan, split: pd.DataFrame) -> list[str]:
    """Return what the user should know of the data: drawn faces, exclusions, duplicates, leaks."""
    notices = list(scan.records.notices)
    if scan.records.layout:
        notices.append(f"data: {scan.records.layout}, {len(scan.records):,} faces")
    known = scan.records.labels.female[scan.records.labels.gendered]
    if len(known) and known.min() == known.max():
        gender = format_gender(known[0])
        notices.append(f"every face is {gender}: of gender nothing can be learnt, and predict will say 'uncertain'")
    if scan.records.drawn:
        notices.append("these faces are drawn, not photographed: the model is good for trying agegen out only")
    if scan.records.excluded:
        shown = "; ".join(f"{item.path} ({item.reason})" for item in scan.records.excluded[:5])
        if (more := len(scan.records.excluded) - 5) > 0:
            shown += f"; and {more} more"
        notices.append(f"{len(scan.records.excluded)} files or rows were left out: {shown}")
    doubles = int(split["group"].duplicated(keep=False).sum())
    if doubles:
        notices.append(f"{doubles} of {len(split)} faces have a near-duplicate")
    if leaks := count_leaking_groups(split):
        notices.append(f"{leaks} groups of near-duplicates straddle the splits that came with the data")
    return notices


def list_notices(training: TrainingContext) -> list[str]:
    """Return what the user should know before the first epoch: of the weights, the data and its crops."""
    data = describe_data(training.scan, training.split)
    taught = [] if training.teaching is None else [f"taught by {who}" for who in training.teaching.teachers]
    return [*describe_team(training), *describe_start(training), *taught, *data, *make_crop_notices(training.survey)]


def describe_team(training: TrainingContext) -> list[str]:
    """Return what the user should know of several processes: what each has of a batch, and how norms go."""
    dist, options = training.options.dist, training.options
    if dist.world_size == 1:
        return []
    norms = "synchronised" if syncs_norms(dist, options.compute) else "each process by its own faces (gloo can't sync)"
    return [f"{dist.world_size} processes share each batch of {options.batch_size}; batch norms: {norms}"]


def describe_start(training: TrainingContext) -> list[str]:
    """Return what the user should know of the weights that a training begins with."""
    if training.start is None:
        return []
    lines = [f"starting from the weights of {training.start}"]
    known = {name: count for name, count in training.seen.items() if count}
    if known:
        parts = ", ".join(f"{count:,} of {name}" for name, count in known.items())
        lines.append(f"the training behind them saw {parts}: metrics on these flatter; use its split (--split-file)")
    elif not training.seen:
        lines.append("whether the training behind them saw faces of validation and test can't be told")
    return lines


def describe_training(config: TrainConfig, training: TrainingContext, started: float) -> dict[str, Any]:
    """Return the content of ``run.json`` at the start of a training."""
    options, settings = training.options, training.settings
    total, trainable = count_parameters(training.model)
    chosen = replace(
        config,
        epochs=settings.epochs,
        batch_size=options.batch_size,
        lr=settings.lr,
        age_balance=options.age_balance,
    )
    return {
        "model": training.plugin.name,
        "plugin": {"distribution": training.plugin.distribution, "version": training.plugin.version},
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in asdict(chosen).items()},
        "settings": {**asdict(settings), "views": options.views, "compute": str(options.compute)},
        "parameters": {"total": total, "trainable": trainable},
        "data": {
            "source": name_data(config.data),
            "layout": training.scan.records.layout,
            "trims": {name: asdict(trim) for name, trim in training.scan.records.trims.items()},
            "faces": len(training.split),
            "fingerprint": fingerprint_split(training.split),
            "terms": training.scan.records.terms,
            "counts": count_splits(training.split),
            "split_origin": name_split(config, training.scan),
            "leaking_groups": count_leaking_groups(training.split),
            "persons": training.scan.records.identity_columns,
            "excluded": [asdict(item) for item in training.scan.records.excluded],
        },
        "teachers": [] if training.teaching is None else list(training.teaching.teachers),
        "start": None if training.start is None else {"checkpoint": str(training.start), "seen": training.seen},
        "baseline": asdict(training.baseline),
        "command": format_command(config),
        "seed": config.seed,
        "libraries": {name: version(name) for name in ("agegen", "torch", "timm", "albumentations", "numpy")},
        "machine": {
            "system": platform.platform(),
            "python": platform.python_version(),
            "cores": count_cores(),
            "device": _name_device(options.compute),
        },
        "started": format_time(started),
        "finished": None,
    }


def name_split(config: TrainConfig, scan: Scan) -> str:
    """Return who decided the split: a ``protocol``, a ``file``, the ``data`` itself, or the ``seed``."""
    if config.protocol is not None:
        return f"protocol {config.protocol}"
    if config.split_file is not None:
        return "file"
    return "data" if "split" in scan.records.frame.columns else "seed"


def name_data(data: tuple[str, ...]) -> str | list[str]:
    """Return the data sets by absolute paths, one as text."""
    resolved = resolve_sources(data)
    return resolved[0] if len(resolved) == 1 else list(resolved)


def count_splits(split: pd.DataFrame) -> dict[str, int]:
    """Return the number of faces in each split."""
    return {name: int((split["split"] == name).sum()) for name in SPLITS}


def format_command(config: TrainConfig) -> str:
    """Return the command that a training amounts to: the options that are not left to their defaults."""
    plain = TrainConfig(config.model, config.data)
    words = ["agegen", "train", "--model", config.model]
    for one in config.data:
        words += ["--data", one]
    for field in fields(config):
        value = getattr(config, field.name)
        if value == getattr(plain, field.name) or field.name in _NOT_IN_COMMAND:
            continue
        name = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
            continue
        for one in value if isinstance(value, tuple) else (value,):
            words += [f"--{name}", str(one)]
    return shlex.join(words)


def format_time(seconds: float) -> str:
    """Return a moment as ISO 8601 in UTC with microseconds, so that names sort by time."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1e6):06d}Z"


def _name_device(compute: Compute) -> str:
    if compute.device.type == "cuda":
        return torch.cuda.get_device_name(compute.device)
    return str(torch.cpu.get_capabilities().get("cpu_name", platform.processor()))


def describe_limit(batch: BatchResult, input_rate: float) -> str:
    """Return in one line how quick a training is, and whether the model or the data limits it."""
    limit = "data" if batch.waiting > _LIMIT else "model"
    alone = batch.images_per_second / max(1 - batch.waiting, 1e-9)
    return (
        f"the {limit} limits this training: {batch.images_per_second:,.0f} images/s after {batch.batch} batches, "
        f"{batch.waiting:.0%} of the time spent waiting for data; without waiting {alone:,.0f}, "
        f"the input by itself {input_rate:,.0f}"
    )
