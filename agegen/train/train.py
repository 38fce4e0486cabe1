"""A whole training, from the options to the run folder that remembers it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agegen.batches.batch import TrainSource
from agegen.batches.device import DeviceBatches
from agegen.batches.images import Pixels, TrainBatches
from agegen.batches.sources import TrainSources, choose_network, make_train_sources, share_backbone
from agegen.data.scan import ProgressHook, ignore_progress
from agegen.distributed import report_lost_worker
from agegen.engines.onnx_export import export_model
from agegen.errors import AgegenError, TrainingInterrupted
from agegen.evaluate.estimates import estimate_batches, write_predictions
from agegen.evaluate.evaluation import Evaluation, evaluate_source
from agegen.export.card import write_card
from agegen.files import write_json
from agegen.model.calibration import Calibration, calibrate
from agegen.model.checkpoint import describe_model, load_checkpoint, save_checkpoint
from agegen.model.metadata import CheckpointInfo
from agegen.model.network import AgeGenderModel, TwoHeads
from agegen.render.figures import plot_curves
from agegen.runs import RunFolder
from agegen.train.config import TrainConfig
from agegen.train.loop import (
    BatchResult,
    EpochResult,
    Trainer,
    TrainEvent,
    TrainNotice,
    TrainResult,
    fit,
    fit_biases,
    make_trainer,
)
from agegen.train.record import (
    BottleneckDetector,
    announce_training,
    begin_record,
    describe_epoch,
    describe_origin,
    describe_result,
    format_time,
)
from agegen.train.setup import TrainingContext, prepare_training
from agegen.train.state import StateFiles

if TYPE_CHECKING:
    import pandas as pd

# Enough to find an operation that is computed otherwise; each takes two passes of the whole model.
_CROPS_TRIED = 8


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
    training = prepare_training(config, on_progress)
    dist = training.options.dist
    with lock_run(training), report_lost_worker(dist, training.run.path):
        record = begin_record(config, training, started)
        if dist.is_main:
            training.run.write(record)
        yield announce_training(training)
        sources_started = time.time()
        sources = make_train_sources(
            training.model,
            training.scan,
            training.split["split"].to_numpy(),
            training.options,
            on_progress,
            None if training.teaching is None else training.teaching.labels,
        )
        if (limited := describe_workers(sources.train)) is not None:
            yield TrainNotice((limited,))
        fit_started = time.time()
        yield from fit_and_save(training, sources, config, should_stop)
        if not dist.is_main:
            # What comes now the first process does alone.
            dist.barrier()
            return
        fitting = time.time() - fit_started
        rows = training.run.read_epochs()
        best = find_best(rows)
        model = calibrate_best(training, sources)
        result = evaluate_best(training, sources, model, config.distributions)
        epochs = float(rows["seconds"].iloc[-1])
        record |= {"finished": format_time(time.time()), "best": describe_epoch(best)}
        record["seconds"] = {
            # With what processes before this one spent on epochs, where the run was resumed.
            "total": round(time.time() - started + max(0.0, epochs - fitting), 1),
            "preparing": round(fit_started - sources_started, 1),
            "epochs": round(epochs, 1),
            "features": round(sources.feature_seconds, 1),
        }
        write_card(training.run.card, training.run, training.run.checkpoint, record=record)
        plot_curves(training.run.curves, {config.model: rows})
        yield from export_best(training.run, model, pick_crops(training))
        # Last of all: a run that says it is finished has everything, and one that was killed before goes on.
        training.run.write(record)
        StateFiles(training.run.path).clear()
        dist.barrier()
    yield TrainResult(training.run.path, config.model, best, result, time.time() - started)


@contextmanager
def lock_run(training: TrainingContext) -> Iterator[None]:
    """Hold the run folder: the first process of a team does, for all."""
    with training.run.lock() if training.options.dist.is_main else nullcontext():
        yield


def describe_workers(source: TrainSource) -> str | None:
    """Return a notice where there are fewer loader processes than were wanted, or none."""
    if isinstance(source, DeviceBatches):
        return "the pictures lie in the memory of the device that trains, and are augmented there"
    if not isinstance(source, TrainBatches) or source.workers == source.wanted_workers:
        return None
    return (
        f"shared memory (/dev/shm) has room for {source.workers} of {source.wanted_workers} loader processes; more "
        "need a larger one (docker run --shm-size) or a smaller --batch-size"
    )


def fit_and_save(
    training: TrainingContext, sources: TrainSources, config: TrainConfig, should_stop: Callable[[], bool]
) -> Iterator[TrainNotice | BatchResult | EpochResult]:
    """Run the training loop from where the run folder's state stands; keep each best epoch, and the state.

    The state is saved where ``config.save_every`` seconds have passed since it was saved last; of a team the first
    process saves, and all stop where one is told to.

    Raises:
        TrainingInterrupted: ``should_stop`` said yes; the state is saved.
    """
    if training.start is None and isinstance(training.model.heads, TwoHeads):
        fit_biases(training.model.heads, sources.train.labels)
    dist = training.options.dist
    trainer = make_trainer(sources.network, training.settings, training.options.compute, dist, config.compile)
    states = StateFiles(training.run.path)
    if damaged := states.restore(trainer):
        yield TrainNotice(damaged)
    rows: list[dict[Any, Any]] = []
    if trainer.progress.epoch and dist.is_main:
        rows = list(training.run.read_epochs().to_dict("records")[: trainer.progress.epoch])
    saved = time.monotonic()
    limits = BottleneckDetector(sources.train.measure_rate())
    for event in fit(trainer, sources.train, sources.val):
        if isinstance(event, EpochResult):
            rows.append(asdict(event))
            if dist.is_main:
                keep_epoch(training, trainer, event, rows)
        stop = dist.any_rank(should_stop())
        # What comes after the last epoch can be killed too, and is then all that is left to do.
        over = isinstance(event, EpochResult) and event.epoch == training.settings.epochs
        if dist.is_main and (stop or over or time.monotonic() - saved >= config.save_every):
            states.save(trainer)
            saved = time.monotonic()
        yield event
        if isinstance(event, BatchResult):
            yield from (TrainNotice((finding,)) for finding in limits.look(event))
        if stop:
            raise TrainingInterrupted(
                f"interrupted in epoch {event.epoch}; go on with `agegen train --resume {training.run.path}`"
            )


def keep_epoch(training: TrainingContext, trainer: Trainer, event: EpochResult, rows: list[dict[Any, Any]]) -> None:
    """Write an epoch's row, and its averaged weights where it is the best so far."""
    if event.best:
        best = share_backbone(training.model, trainer.averaged.module)
        note = {**describe_result(event), **describe_origin(training)}
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


@dataclass(frozen=True)
class BestModel:
    """The best checkpoint, loaded once for all that comes after the last epoch."""

    info: CheckpointInfo
    model: AgeGenderModel
    calibration: Calibration


def calibrate_best(training: TrainingContext, sources: TrainSources) -> BestModel:
    """Calibrate the best checkpoint on the validation split, and save it with that and its crop contract.

    The training is over: its backbone takes the checkpoint's tensors, for a frozen one is costly to build anew.
    """
    info, model = load_checkpoint(training.run.checkpoint, training.model.backbone)
    compute = training.options.compute
    model.to(compute.device)
    estimates = estimate_batches(choose_network(model), sources.val, compute)
    inside = (training.split["split"] == "val").to_numpy()
    origins = training.scan.records.list_origins()[inside]
    calibration = calibrate(estimates.age, estimates.spread, estimates.p_female, sources.val.labels, origins)
    contract = None if training.survey.scattered else training.survey.template
    crop = None if contract is None else contract.to_json()
    info = replace(info, calibration=calibration.to_json(), crop=crop)
    save_checkpoint(training.run.checkpoint, model, info)
    return BestModel(info, model, calibration)


def evaluate_best(training: TrainingContext, sources: TrainSources, best: BestModel, distributions: bool) -> Evaluation:
    """Evaluate the best model on the test split; write what comes of it, with P(age) where ``distributions`` says."""
    inside = (training.split["split"] == "test").to_numpy()
    result, predictions = evaluate_source(
        choose_network(best.model),
        sources.test,
        training.scan,
        inside,
        training.baseline,
        best.calibration,
        training.options.compute,
        keep=distributions,
    )
    write_json(training.run.evaluation, result.to_json())
    write_predictions(training.run.predictions, predictions)
    return result


def pick_crops(training: TrainingContext) -> NDArray[np.uint8]:
    """Return a few of the pictures (8, size, size, 3), for the ONNX file to be tried on."""
    pixels = Pixels(training.scan.records, training.model.backbone.input_spec.size, training.scan.pixels)
    return np.stack([pixels[row] for row in range(min(_CROPS_TRIED, len(pixels)))])


def export_best(run: RunFolder, best: BestModel, crops: NDArray[np.uint8]) -> Iterator[TrainNotice]:
    """Write the best model as ONNX too, for predicting; a backbone that ONNX can't express does without."""
    try:
        export_model(best.info, best.model, run.checkpoint, run.onnx, crops)
    except AgegenError as error:
        run.onnx.unlink(missing_ok=True)
        yield TrainNotice((f"{error}; predict will use torch",))
