"""A whole training: set it up, fit, calibrate and evaluate the best epoch, then describe and export it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from agegen.batches.batch import EvalSource
from agegen.batches.images import explain_loader_errors
from agegen.batches.sources import TrainSources, choose_network, make_train_sources, share_backbone
from agegen.data.scan import ProgressHook, ignore_progress
from agegen.distributed import DistContext, report_lost_worker
from agegen.engines.onnx_export import export_model
from agegen.errors import AgegenError, TrainingInterrupted
from agegen.evaluate.estimates import estimate_batches, write_predictions
from agegen.evaluate.evaluation import Evaluation, evaluate_source
from agegen.export.card import write_card
from agegen.files import digest_file, write_json
from agegen.model.calibration import Calibration, calibrate, describe_weaknesses
from agegen.model.checkpoint import describe_model, load_checkpoint, save_checkpoint
from agegen.model.metadata import CheckpointInfo
from agegen.model.network import AgeGenderModel, TwoHeads
from agegen.render.figures import plot_curves
from agegen.runs import RunFolder
from agegen.train.config import TrainConfig
from agegen.train.loop import (
    BatchResult,
    EpochResult,
    LossAlarm,
    TrainEvent,
    TrainNotice,
    TrainResult,
    fit,
    fit_biases,
    make_trainer,
)
from agegen.train.record import (
    begin_record,
    epoch_to_json,
    format_time,
    make_checkpoint_notes,
    make_start_event,
)
from agegen.train.setup import TrainingContext, load_weights, prepare_training, sees_ages, start_run
from agegen.train.state import StateFiles

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class TrainedRun:
    """A run whose epochs are finished, with what its evaluation needs.

    Attributes:
        training: the model, its data and its run folder.
        sources: the batches of each split.
        record: the content of ``run.json``.
        best: the best epoch.
        seconds: the wall time since the start.
        distributions: whether the estimates of the test split include P(age).
    """

    training: TrainingContext
    sources: TrainSources
    record: dict[str, Any]
    best: EpochResult
    seconds: float
    distributions: bool


def train_and_finish(
    config: TrainConfig,
    on_progress: ProgressHook = ignore_progress,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[TrainEvent]:
    """Train a model, then evaluate it and complete its run folder; yields the events of both and the result.

    ``should_stop`` is called after each batch and epoch; if it returns True, the state is saved.

    Raises:
        TrainingInterrupted: ``should_stop`` returned True.
        AgegenError: any error that the user can fix, from an unknown plugin to a full disk.
    """
    started = time.time()
    training = prepare_training(config, on_progress)
    for event in train_run(config, training, started, on_progress, should_stop):
        if isinstance(event, TrainedRun):
            yield from finish_run(event)
        else:
            yield event


def train_run(
    config: TrainConfig,
    training: TrainingContext,
    started: float,
    on_progress: ProgressHook,
    should_stop: Callable[[], bool],
) -> Iterator[TrainEvent | TrainedRun]:
    """Train a model; yields the start, each batch and epoch, and notices. Rank 0 yields the trained run at the end.

    ``training`` is what :func:`prepare_training` made of the config, beginning at the time ``started``. The run folder
    stays locked while the caller handles the trained run. See :func:`train_and_finish`.
    """
    run, dist = training.run, training.options.dist
    with _lock(run, dist), report_lost_worker(dist, run.path), explain_loader_errors(lambda: run.path):
        if not training.resumed:
            dist.run_on_main(lambda: start_run(run, training.split))
        record = begin_record(config, training, started)
        if dist.is_main:
            run.write(record)
        yield make_start_event(training)
        sources_started = time.time()
        sources = make_sources(training, on_progress)
        if sources.notices:
            yield TrainNotice(sources.notices)
        fit_started = time.time()
        yield from fit_and_save(training, sources, config.save_every, config.compile, should_stop)
        if dist.is_main:
            epochs = run.read_epochs()
            epoch_seconds, fit_seconds = float(epochs["seconds"].iloc[-1]), time.time() - fit_started
            record["seconds"] = {
                # A resumed run includes the epochs before it was interrupted.
                "total": round(time.time() - started + max(0.0, epoch_seconds - fit_seconds), 1),
                "preparing": round(fit_started - sources_started, 1),
                "epochs": round(epoch_seconds, 1),
                "features": round(sources.feature_seconds, 1),
            }
            yield TrainedRun(training, sources, record, find_best(epochs), time.time() - started, config.distributions)
        dist.barrier()


def finish_run(trained: TrainedRun) -> Iterator[TrainNotice | TrainResult]:
    """Calibrate, evaluate, describe and export the best epoch, and mark the run as finished.

    A backbone that cannot be exported to ONNX gives a notice.
    """
    started = time.time()
    training, run = trained.training, trained.training.run
    model = calibrate_best(training, trained.sources.val)
    evaluation = evaluate_best(training, model, trained.sources.test, trained.distributions)
    seconds = time.time() - started
    record = trained.record | {"finished": format_time(time.time()), "best": epoch_to_json(trained.best)}
    record["seconds"]["total"] = round(record["seconds"]["total"] + seconds, 1)
    record["sha256"] = {path.name: digest_file(path) for path in (run.checkpoint, run.predictions)}
    if weaknesses := describe_weaknesses(model.calibration):
        yield TrainNotice(tuple(weaknesses))
    write_card(run.card, run, run.checkpoint, record=record)
    plot_curves(run.curves, {record["model"]: run.read_epochs()})
    try:
        export_model(model.info, model.model, run.checkpoint, run.onnx)
    except AgegenError as error:
        run.onnx.unlink(missing_ok=True)
        yield TrainNotice((f"{error}; predict will use torch",))
    # Written last: a run that says it is finished is complete, and one that was killed before can be resumed.
    run.write(record)
    StateFiles(run.path).clear()
    yield TrainResult(run.path, record["model"], trained.best, evaluation, trained.seconds + time.time() - started)


def _lock(run: RunFolder, dist: DistContext) -> AbstractContextManager[None]:
    """Lock the run folder; rank 0 does so for all processes."""
    return run.lock() if dist.is_main else nullcontext()


def make_sources(training: TrainingContext, on_progress: ProgressHook) -> TrainSources:
    """Return the batches of each split."""
    soft = None if training.distillation is None else training.distillation.labels
    splits = training.split["split"].to_numpy()
    return make_train_sources(training.model, training.scan, splits, training.options, on_progress, soft)


def fit_and_save(
    training: TrainingContext,
    sources: TrainSources,
    save_every: float,
    compiled: bool,
    should_stop: Callable[[], bool],
) -> Iterator[TrainNotice | BatchResult | EpochResult]:
    """Run the training loop from the saved state on; keep the best epoch's checkpoint, and save the state.

    The state is saved every ``save_every`` seconds, by rank 0. If ``should_stop`` returns True in one process, all
    processes stop.

    Raises:
        TrainingInterrupted: ``should_stop`` returned True; the state is saved.
    """
    run, dist, settings = training.run, training.options.dist, training.settings
    states = StateFiles(run.path)
    restored = training.resumed and states.read(dist)
    if states.notices:
        yield TrainNotice(states.notices)
    if training.start is None and isinstance(training.model.heads, TwoHeads):
        fit_biases(training.model.heads, sources.train.labels)
    elif training.start is not None and run.has_state and not restored:
        # They were not loaded, because a state was to replace them.
        load_weights(training.model, training.start)
    trainer = make_trainer(sources.network, settings, training.options.compute, dist, compiled)
    states.restore(trainer)
    rows = _read_rows(run, trainer.progress.epoch) if dist.is_main else []
    alarm = LossAlarm(settings)
    for event in fit(trainer, sources.train, sources.val):
        if isinstance(event, EpochResult) and dist.is_main:
            rows.append(asdict(event))
            keep_epoch(training, trainer.averaged.module, event, rows)
        stop = dist.any_rank(should_stop())
        # Saved after the last epoch, too: a run that is killed while it is evaluated need not train again.
        is_last = isinstance(event, EpochResult) and event.epoch == settings.epochs
        if dist.is_main and (stop or is_last or states.age >= save_every):
            states.save(trainer)
        yield event
        if notice := alarm.check(event):
            yield TrainNotice((notice,))
        if stop:
            raise TrainingInterrupted(
                f"interrupted in epoch {event.epoch}; resume with `agegen train --resume {run.path}`"
            )


def _read_rows(run: RunFolder, epochs: int) -> list[dict[Any, Any]]:
    """Return the rows of ``epochs.csv`` for the epochs before the saved state."""
    return list(run.read_epochs().to_dict("records")[:epochs]) if epochs else []


def keep_epoch(training: TrainingContext, network: nn.Module, event: EpochResult, rows: list[dict[Any, Any]]) -> None:
    """Write ``epochs.csv``, and the checkpoint if the epoch is the best so far.

    ``network`` has the averaged weights.
    """
    if event.best:
        best = share_backbone(training.model, network)
        info = describe_model(training.plugin, best, make_checkpoint_notes(training, event))
        save_checkpoint(training.run.checkpoint, best, info, training.used_faces)
    training.run.write_epochs(rows)


def find_best(rows: pd.DataFrame) -> EpochResult:
    """Return the best epoch of ``epochs.csv``: the last one that was the best so far.

    Raises:
        AgegenError: no epoch had a finite validation loss.
    """
    best = rows[rows["best"].astype(bool)]
    if best.empty:
        raise AgegenError("no epoch had a finite validation loss: start again with a lower --lr")
    return EpochResult(**{str(name): value for name, value in best.to_dict("records")[-1].items()})


@dataclass(frozen=True)
class BestModel:
    """The best epoch's checkpoint, loaded and calibrated."""

    info: CheckpointInfo
    model: AgeGenderModel
    calibration: Calibration


def calibrate_best(training: TrainingContext, val: EvalSource) -> BestModel:
    """Calibrate the best checkpoint on the validation split; save it with its calibration and crop contract.

    The training is over, so the backbone of its model takes the weights of the checkpoint: building a frozen one
    again would take long.
    """
    checkpoint, compute = training.run.checkpoint, training.options.compute
    info, model = load_checkpoint(checkpoint, training.model.backbone)
    model.to(compute.device)
    estimates = estimate_batches(choose_network(model), val, compute)
    in_val = (training.split["split"] == "val").to_numpy()
    origins = training.scan.records.list_face_sources()[in_val]
    knows_age = sees_ages(training)
    # Without labels, the ages of the bands in which gender is unreliable would be arbitrary.
    age = estimates.age if knows_age else np.zeros_like(estimates.age)
    calibration = calibrate(age, estimates.spread, estimates.p_female, val.labels, origins)
    calibration = replace(calibration, knows_age=knows_age)
    contract = None if training.landmarks.scattered else training.landmarks.template
    crop = None if contract is None else contract.to_json()
    info = replace(info, calibration=calibration.to_json(), crop=crop)
    save_checkpoint(checkpoint, model, info, training.used_faces)
    return BestModel(info, model, calibration)


def evaluate_best(training: TrainingContext, best: BestModel, test: EvalSource, distributions: bool) -> Evaluation:
    """Evaluate the best model on the test split and write the report and the estimates.

    ``distributions``: whether the estimates include P(age).
    """
    result, predictions = evaluate_source(
        choose_network(best.model),
        test,
        training.scan,
        (training.split["split"] == "test").to_numpy(),
        training.baseline,
        best.calibration,
        training.options.compute,
        keep=distributions,
    )
    write_json(training.run.evaluation, result.to_json())
    write_predictions(training.run.predictions, predictions)
    return result
