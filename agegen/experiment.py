"""A whole training: data, split, model, epochs, the test split, and the run folder that remembers it."""

from __future__ import annotations

import platform
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from agegen import runs
from agegen.backbone import Backbone
from agegen.calibration import Calibration, calibrate
from agegen.checkpoints import describe_model, load_checkpoint, save_checkpoint
from agegen.data.batches import choose_workers
from agegen.data.images import decode_image
from agegen.data.records import SPLITS, load_records
from agegen.data.scan import ProgressHook, Scan, count_cores, ignore_progress
from agegen.data.splits import (
    apply_split,
    count_leaking_groups,
    fingerprint_split,
    read_split,
    split_scan,
    write_split,
)
from agegen.devices import Compute, choose_compute, keep_freed_memory
from agegen.errors import AgegenError, DataError, TrainingInterrupted
from agegen.evaluation import Baseline, Evaluation, estimate_batches, find_baseline
from agegen.faces.alignment import CropContract, measure_contract
from agegen.faces.detectors import DEFAULT_DETECTOR, create_detector
from agegen.features import choose_cache_dir
from agegen.files import write_json
from agegen.fit_state import StateFiles
from agegen.model import AgeGenderModel, count_parameters
from agegen.model_card import write_card
from agegen.plots import plot_curves
from agegen.predictions import evaluate_source, write_predictions
from agegen.registry import Plugin, build_backbone, load_backbone
from agegen.sources import SourceOptions, TrainSources, make_train_sources, scan_for, share_backbone
from agegen.training import BatchResult, EpochResult, FitSettings, Trainer, fit, make_trainer

if TYPE_CHECKING:
    import pandas as pd

# How many of the pictures are searched for landmarks to learn how they are cropped.
_CROPS_MEASURED = 200
# Where a run lies and what is kept for it changes nothing of the result.
_NOT_IN_COMMAND = ("out", "cache_dir", "workers", "save_every", "resume")


@dataclass(frozen=True)
class TrainConfig:
    """Options of ``agegen train``; None stands for the backbone's own default.

    ``save_every``: seconds after which the state is saved within an epoch. ``resume``: the folder of an
    unfinished run, to which the other options belong; see :func:`agegen.resume.read_config`.
    """

    model: str
    data: str
    out: Path | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    age_balance: float | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    workers: int | None = None
    split_file: Path | None = None
    cache_dir: Path | None = None
    save_every: float = 60.0
    resume: Path | None = None


@dataclass(frozen=True)
class TrainNotice:
    """What the user should know in the course of a training."""

    notices: tuple[str, ...]


@dataclass(frozen=True)
class TrainStart:
    """What a training is about to do.

    Attributes:
        counts: faces in each split.
        parameters: all, and those that are trained.
        setting: device, precision and the like in words.
        notices: what the user should know of the data.
    """

    run: Path
    model: str
    counts: dict[str, int]
    parameters: tuple[int, int]
    epochs: int
    setting: str
    notices: tuple[str, ...]


@dataclass(frozen=True)
class TrainResult:
    """A finished training: its run folder, best epoch, test metrics, and wall time in seconds."""

    run: Path
    model: str
    best: EpochResult
    evaluation: Evaluation
    seconds: float


TrainEvent = TrainStart | TrainNotice | BatchResult | EpochResult | TrainResult


@dataclass(frozen=True)
class _Training:
    """What the steps of one training share."""

    plugin: Plugin
    settings: FitSettings
    options: SourceOptions
    model: AgeGenderModel
    scan: Scan
    split: pd.DataFrame
    run: runs.RunFolder
    baseline: Baseline
    crop: CropContract | None


def train_run(
    config: TrainConfig,
    on_progress: ProgressHook = ignore_progress,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[TrainEvent]:
    """Train a model and yield what happens: the start, batches, epochs, and the result.

    After each batch and epoch ``should_stop`` is asked; where it says yes, the state is saved.

    Raises:
        TrainingInterrupted: ``should_stop`` said yes.
        AgegenError: whatever the user can put right, from the plugin's name to a full disk.
    """
    started = time.time()
    keep_freed_memory()
    training = prepare_training(config, on_progress)
    with training.run.lock():
        record = begin_record(config, training, started)
        training.run.write(record)
        yield announce_training(training)
        sources_started = time.time()
        sources = make_train_sources(
            training.model, training.scan, training.split["split"].to_numpy(), training.options, on_progress
        )
        fit_started = time.time()
        yield from fit_and_keep(training, sources, config.save_every, should_stop)
        fitting = time.time() - fit_started
        rows = training.run.read_epochs()
        best = find_best(rows)
        result = evaluate_best(training, sources, calibrate_best(training, sources))
        epochs = float(rows["seconds"].iloc[-1])
        record |= {"finished": format_time(time.time()), "best": asdict(best)}
        record["seconds"] = {
            # With what processes before this one spent on epochs, where the run was resumed.
            "total": round(time.time() - started + max(0.0, epochs - fitting), 1),
            "preparing": round(fit_started - sources_started, 1),
            "epochs": round(epochs, 1),
            "features": round(sources.feature_seconds, 1),
        }
        training.run.write(record)
        write_card(training.run.card, training.run, training.run.checkpoint)
        plot_curves(training.run.curves, {config.model: rows})
        StateFiles(training.run.path).clear()
    yield TrainResult(training.run.path, config.model, best, result, time.time() - started)


def prepare_training(config: TrainConfig, on_progress: ProgressHook) -> _Training:
    """Load the plugin and the data, build the model, split, and make the run folder or open that to resume."""
    compute = choose_compute(config.device, config.precision)
    plugin, backbone_class = load_backbone(config.model)
    settings, options = choose_settings(config, backbone_class, compute)
    torch.manual_seed(config.seed)
    model = AgeGenderModel(build_backbone(plugin, backbone_class)).to(compute.device)
    scan = scan_for(backbone_class, load_records(config.data), on_progress)
    if config.resume is not None:
        run = runs.open_run(config.resume)
        scan, split = apply_split(scan, read_split(run.split), "the run's split.csv")
    else:
        scan, split = split_data(scan, config)
        run = runs.create_run(config.out, plugin.name)
        write_split(run.split, split)
    train = scan.records.frame[(split["split"] == "train").to_numpy()]
    return _Training(plugin, settings, options, model, scan, split, run, find_baseline(train), measure_crops(scan))


def begin_record(config: TrainConfig, training: _Training, started: float) -> dict[str, Any]:
    """Return ``run.json`` at the start: a new one, or that of the resumed run with a note of when it went on."""
    if config.resume is None:
        return describe_training(config, training, started)
    record = training.run.read()
    record["resumed"] = [*record.get("resumed", []), format_time(started)]
    return record


def choose_settings(
    config: TrainConfig, backbone: type[Backbone], compute: Compute
) -> tuple[FitSettings, SourceOptions]:
    """Return the settings, the backbone's defaults filled in where the user gave nothing.

    Raises:
        AgegenError: a number that makes no sense.
    """
    defaults = backbone.defaults
    epochs = defaults.epochs if config.epochs is None else config.epochs
    batch_size = defaults.batch_size if config.batch_size is None else config.batch_size
    lr = defaults.lr if config.lr is None else config.lr
    balance = defaults.age_balance if config.age_balance is None else config.age_balance
    if epochs < 1 or batch_size < 2 or not 0 < lr < float("inf"):
        raise AgegenError("--epochs must be at least 1, --batch-size at least 2 and --lr above 0")
    if not 0 <= balance <= 1:
        raise AgegenError("--age-balance must be between 0 (the data as it is) and 1")
    settings = FitSettings(epochs, lr, defaults.weight_decay)
    options = SourceOptions(compute, batch_size, config.seed, config.workers, defaults.views, config.cache_dir, balance)
    return settings, options


def split_data(scan: Scan, config: TrainConfig) -> tuple[Scan, pd.DataFrame]:
    """Return the pictures to use and their split: a new one, or that of ``--split-file``.

    Raises:
        DataError: the split file doesn't fit the data, or a split is empty.
    """
    if config.split_file is None:
        split = split_scan(scan, config.seed)
    else:
        scan, split = apply_split(scan, read_split(config.split_file), str(config.split_file))
    for name, least in (("train", 2), ("val", 1), ("test", 1)):
        count = int((split["split"] == name).sum())
        if count < least:
            raise DataError(f"the split '{name}' has {count} of {len(split)} faces; agegen needs more data")
    return scan, split


def fit_and_keep(
    training: _Training, sources: TrainSources, save_every: float, should_stop: Callable[[], bool]
) -> Iterator[TrainNotice | BatchResult | EpochResult]:
    """Run the training loop from where the run folder's state stands; keep each best epoch, and the state.

    The state is saved after each epoch, and within one where ``save_every`` seconds have passed.

    Raises:
        TrainingInterrupted: ``should_stop`` said yes; the state is saved.
    """
    trainer = make_trainer(sources.network, training.settings, training.options.compute)
    states = StateFiles(training.run.path)
    restored = states.restore(trainer)
    if restored.notices:
        yield TrainNotice(restored.notices)
    rows: list[dict[Any, Any]] = []
    if trainer.progress.epoch:
        rows = list(training.run.read_epochs().to_dict("records")[: trainer.progress.epoch])
    saved = time.monotonic()
    for event in fit(trainer, sources.train, sources.val):
        if isinstance(event, EpochResult):
            rows.append(asdict(event))
            keep_epoch(training, trainer, event, rows)
        stop = should_stop()
        if stop or isinstance(event, EpochResult) or time.monotonic() - saved >= save_every:
            states.save(trainer)
            saved = time.monotonic()
        yield event
        if stop:
            raise TrainingInterrupted(
                f"interrupted in epoch {event.epoch}; go on with `agegen train --resume {training.run.path}`"
            )


def keep_epoch(training: _Training, trainer: Trainer, event: EpochResult, rows: list[dict[Any, Any]]) -> None:
    """Write an epoch's row, and its averaged weights where it is the best so far."""
    if event.best:
        best = share_backbone(training.model, trainer.averaged.module)
        note = {**asdict(event), **describe_origin(training)}
        save_checkpoint(training.run.checkpoint, best, describe_model(training.plugin, best, note))
    training.run.write_epochs(rows)


def find_best(rows: pd.DataFrame) -> EpochResult:
    """Return the best of the epochs of ``epochs.csv``: the last that was the best so far.

    Raises:
        AgegenError: no epoch gave metrics that are numbers.
    """
    best = rows[rows["best"].astype(bool)]
    if best.empty:
        raise AgegenError("no epoch gave metrics that are numbers; try a lower --lr")
    return EpochResult(**{str(name): value for name, value in best.to_dict("records")[-1].items()})


def calibrate_best(training: _Training, sources: TrainSources) -> Calibration:
    """Calibrate the best checkpoint on the validation split, and save it with that and its crop contract."""
    info, model = load_checkpoint(training.run.checkpoint)
    network = model.heads if model.backbone.frozen else model
    compute = training.options.compute
    estimates = estimate_batches(network.to(compute.device), sources.val, compute)
    ages, female = sources.val.labels
    calibration = calibrate(estimates.age, estimates.spread, estimates.p_female, ages.astype(float), female > 0.5)
    crop = None if training.crop is None else training.crop.to_json()
    save_checkpoint(training.run.checkpoint, model, replace(info, calibration=calibration.to_json(), crop=crop))
    return calibration


def describe_origin(training: _Training) -> dict[str, Any]:
    """Return what a checkpoint says of its data: all that an evaluation without the run folder needs."""
    return {
        "baseline": asdict(training.baseline),
        "terms": training.scan.records.terms,
        "split": fingerprint_split(training.split),
        "seed": training.options.seed,
    }


def evaluate_best(training: _Training, sources: TrainSources, calibration: Calibration) -> Evaluation:
    """Evaluate the best checkpoint, as it lies on disk, on the test split; write what comes of it."""
    _, model = load_checkpoint(training.run.checkpoint)
    network = model.heads if model.backbone.frozen else model
    inside = (training.split["split"] == "test").to_numpy()
    result, predictions = evaluate_source(
        network, sources.test, training.scan, inside, training.baseline, calibration, training.options.compute
    )
    write_json(training.run.evaluation, result.to_json())
    write_predictions(training.run.predictions, predictions)
    return result


def measure_crops(scan: Scan) -> CropContract | None:
    """Return where the landmarks lie in a sample of the pictures; None where they show no faces to detect."""
    rows = np.random.default_rng(0).permutation(len(scan.records))[:_CROPS_MEASURED]
    crops = (decode_image(scan.records.read(int(row))) for row in rows)
    return measure_contract(crops, create_detector(DEFAULT_DETECTOR))


def announce_training(training: _Training) -> TrainStart:
    """Return what to tell the user before the first epoch."""
    options = training.options
    setting = f"{options.compute}, batches of {options.batch_size}"
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
        notices=tuple(describe_data(training.scan, training.split)),
    )


def describe_data(scan: Scan, split: pd.DataFrame) -> list[str]:
    """Return what the user should know of the data: drawn faces, exclusions, duplicates, leaks."""
    notices = []
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


def describe_training(config: TrainConfig, training: _Training, started: float) -> dict[str, Any]:
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
            "source": str(Path(config.data).resolve()) if not training.scan.records.drawn else config.data,
            "faces": len(training.split),
            "fingerprint": fingerprint_split(training.split),
            "terms": training.scan.records.terms,
            "counts": count_splits(training.split),
            "excluded": [asdict(item) for item in training.scan.records.excluded],
        },
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


def count_splits(split: pd.DataFrame) -> dict[str, int]:
    """Return the number of faces in each split."""
    return {name: int((split["split"] == name).sum()) for name in SPLITS}


def format_command(config: TrainConfig) -> str:
    """Return the command that a training amounts to: the options that are not left to their defaults."""
    plain = TrainConfig(config.model, config.data)
    words = ["agegen", "train", "--model", config.model, "--data", config.data]
    for field in fields(config):
        value = getattr(config, field.name)
        if value != getattr(plain, field.name) and field.name not in _NOT_IN_COMMAND:
            words += [f"--{field.name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def format_time(seconds: float) -> str:
    """Return a moment as ISO 8601 in UTC with microseconds, so that names sort by time."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1e6):06d}Z"


def _name_device(compute: Compute) -> str:
    if compute.device.type == "cuda":
        return torch.cuda.get_device_name(compute.device)
    return str(torch.cpu.get_capabilities().get("cpu_name", platform.processor()))
