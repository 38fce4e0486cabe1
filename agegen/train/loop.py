"""The training loop, its events, and what it consists of: optimizer, schedule, averaging and validation."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from agegen.backbone import LossSettings, TrainingDefaults
from agegen.batches.batch import Batch, BatchSource, EvalSource, smooth_ages, spread_ages
from agegen.data.labels import Labels
from agegen.distributed import SINGLE_PROCESS, DistContext
from agegen.errors import AgegenError
from agegen.evaluate.estimates import Estimates, estimate_batches
from agegen.evaluate.evaluation import Evaluation
from agegen.evaluate.metrics import measure_distance
from agegen.machine import Compute
from agegen.model.loss import compute_loss
from agegen.model.network import AgeGenderModel, TwoHeads


@dataclass(frozen=True)
class FitSettings:
    """How to train; see :class:`agegen.backbone.TrainingDefaults` for the meaning of each.

    ``default_lr`` is the learning rate without ``--lr``, for messages.
    """

    epochs: int
    lr: float
    weight_decay: float
    warmup: float = TrainingDefaults.warmup
    ema_decay: float = TrainingDefaults.ema_decay
    layer_decay: float | None = None
    loss: LossSettings = TrainingDefaults.loss
    default_lr: float | None = None


# A validation loss so many times that of the first batch shows a diverging training; a converging one reduces it.
_ALARMING = 10.0
# In choosing the best epoch, one point of gender accuracy weighs as much as 0.1 years of MAE.
ACCURACY_YEARS = 10.0
# If half of the estimates are inside their brackets of ten years, exact ages have an MAE of about 5 years.
BRACKET_YEARS = 10.0
# Faces added to each year of age when the heads are initialised, so that no age is impossible.
_PRIOR_FACES = 1e-3
# The compilers that torch looks for to compile for a CPU.
_COMPILERS = ("g++", "clang++")


@dataclass(frozen=True)
class BatchResult:
    """One step: ``batch`` of ``batches`` (from 1) of ``epoch`` (from 1)."""

    epoch: int
    batch: int
    batches: int
    loss: float
    images_per_second: float


@dataclass(frozen=True)
class EpochResult:
    """One epoch, validated with the averaged weights; a row of ``epochs.csv``.

    Attributes:
        epoch: from 1.
        val_mae: in years, of exact ages; NaN without any.
        val_accuracy: of gender, 0–1; NaN without any.
        lr: the learning rate at its end.
        seconds: since the first step of the training, including validation.
        images_per_second: in training.
        best: whether it is the best epoch so far (the lowest :func:`score_epoch`).
        val_in_bracket: the share of estimates inside the age brackets of the labels, 0–1; NaN without any.
    """

    epoch: int
    train_loss: float
    val_loss: float
    val_mae: float
    val_accuracy: float
    lr: float
    seconds: float
    images_per_second: float
    best: bool
    val_in_bracket: float


@dataclass(frozen=True)
class TrainStart:
    """The start of a training.

    Attributes:
        counts: faces in each split.
        parameters: all of them, and the trainable ones.
        setting: device, precision and the like, for the user.
        notices: about the weights and the data, for the user.
    """

    run: Path
    model: str
    counts: dict[str, int]
    parameters: tuple[int, int]
    epochs: int
    setting: str
    notices: tuple[str, ...]


@dataclass(frozen=True)
class TrainNotice:
    """Notices for the user during a training."""

    notices: tuple[str, ...]


@dataclass(frozen=True)
class TrainResult:
    """A finished training: its run folder, best epoch, test metrics, and wall time in seconds."""

    run: Path
    model: str
    best: EpochResult
    evaluation: Evaluation
    seconds: float


@dataclass(frozen=True)
class PartStart:
    """The start of one training of a study: ``number`` (from 1) of ``count`` ``folds`` or ``seeds``."""

    run: Path
    number: int
    count: int
    kind: str


@dataclass(frozen=True)
class StudyResult:
    """A finished study: its folder, its summary as written to the folder, and wall time in seconds."""

    path: Path
    summary: dict[str, Any]
    seconds: float


TrainEvent = TrainStart | TrainNotice | BatchResult | EpochResult | TrainResult
StudyEvent = TrainEvent | PartStart | StudyResult


@dataclass
class Progress:
    """The position of a training; together with the tensors of a :class:`Trainer`, all that resuming needs.

    Attributes:
        epoch: finished epochs.
        batch: finished batches of the current epoch.
        seen: faces of the current epoch so far.
        loss_sum: the sum of the losses of these faces.
        best: the lowest :func:`score_epoch` so far.
        seconds: of training so far, including interrupted runs.
    """

    epoch: int = 0
    batch: int = 0
    seen: int = 0
    loss_sum: float = 0.0
    best: float = math.inf
    seconds: float = 0.0


@dataclass
class Trainer:
    """What a training changes: network, averaged weights (the ones to keep), optimizer and progress.

    ``wrapped`` is the network as training calls it: compiled, and with gradients averaged over all processes.
    """

    network: nn.Module
    averaged: AveragedModel
    optimizer: torch.optim.Optimizer
    settings: FitSettings
    compute: Compute
    wrapped: nn.Module
    dist: DistContext = SINGLE_PROCESS
    progress: Progress = field(default_factory=Progress)


def make_trainer(
    network: nn.Module,
    settings: FitSettings,
    compute: Compute,
    dist: DistContext = SINGLE_PROCESS,
    compiled: bool = False,
) -> Trainer:
    """Return a trainer at the start of a training; ``compiled``: whether to use ``torch.compile``.

    Raises:
        AgegenError: torch cannot compile on this machine.
    """
    if compiled and compute.device.type == "cpu" and not (os.environ.get("CXX") or any(map(shutil.which, _COMPILERS))):
        raise AgegenError("--compile requires a C++ compiler (g++ or clang++); install one, or leave --compile out")
    if syncs_norms(dist, compute):
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    averaged = average_network(network, settings.ema_decay)
    optimizer = make_optimizer(network, settings)
    wrapped: Any = dist.wrap(torch.compile(network) if compiled else network)  # type: ignore[arg-type]
    return Trainer(network, averaged, optimizer, settings, compute, wrapped, dist)


def fit(trainer: Trainer, train: BatchSource, val: EvalSource) -> Iterator[BatchResult | EpochResult]:
    """Train from the trainer's position, yielding a result after each batch and each epoch.

    While the generator waits after a result, the trainer is consistent: the caller may read and save it.

    Raises:
        AgegenError: the loss or its gradient became NaN or infinite.
    """
    progress = trainer.progress
    while progress.epoch < trainer.settings.epochs:
        trainer.network.train()
        seen_before, seconds_before, rate = progress.seen, progress.seconds, 0.0
        started = time.monotonic()
        for batch in train.iterate(progress.epoch, progress.batch):
            loss = take_step(trainer, batch, len(train))
            progress.batch += 1
            progress.seen += batch.size
            progress.loss_sum += loss * batch.size
            progress.seconds += time.monotonic() - started
            rate = (progress.seen - seen_before) / max(progress.seconds - seconds_before, 1e-9)
            yield BatchResult(progress.epoch + 1, progress.batch, len(train), loss, rate)
            started = time.monotonic()
        yield end_epoch(trainer, val, len(train), rate)


def take_step(trainer: Trainer, batch: Batch, batches: int) -> float:
    """Train on one batch of an epoch of ``batches``; return its loss, over all processes.

    Raises:
        AgegenError: the loss or its gradient became NaN or infinite.
    """
    settings, compute, progress = trainer.settings, trainer.compute, trainer.progress
    # Learning rate: linear warm-up, cosine decay. Layer-wise rates scale it by timm's `lr_scale`.
    factor = scale_lr(progress.epoch * batches + progress.batch, settings.epochs * batches, settings.warmup)
    for group in trainer.optimizer.param_groups:
        group["lr"] = settings.lr * factor * group.get("lr_scale", 1.0)
    # Forward pass.
    images = batch.views[0].to(compute.device, non_blocking=True)
    with compute.autocast():
        outputs = trainer.wrapped(images)
    # This process' part of the loss: the parts of all processes add up to the loss of the whole batch.
    loss = compute_loss(outputs, batch.targets.to(compute.device), settings.loss, batch.counts)
    value = float(trainer.dist.reduce_sum(loss.detach().clone()).item())
    # Backward pass. The factor turns the average over processes, which the wrapped network computes, into the sum.
    trainer.optimizer.zero_grad(set_to_none=True)
    (loss * trainer.dist.world_size).backward()  # type: ignore[no-untyped-call]
    # Checked before the step, so that NaN gets neither into the weights nor into a saved state.
    if not (math.isfinite(value) and _has_finite_gradients(trainer.network)):
        raise AgegenError(_explain_divergence(progress.epoch + 1, progress.batch + 1, settings))
    trainer.optimizer.step()
    # Exponential moving average of the weights.
    trainer.averaged.update_parameters(trainer.network)
    return value


def _has_finite_gradients(network: nn.Module) -> bool:
    """Return whether all gradients are finite: their total norm is."""
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return not gradients or bool(torch.isfinite(nn.utils.get_total_norm(gradients)))


def _explain_divergence(epoch: int, batch: int, settings: FitSettings) -> str:
    kept = "the best epoch so far is kept" if epoch > 1 else "no epoch was finished"
    return (
        f"the loss or its gradient became NaN or infinite in epoch {epoch}, batch {batch}; {kept}. Usual causes: a "
        f"learning rate that is too high ({advise_lr(settings)}), or --precision bf16 (try fp32)"
    )


def advise_lr(settings: FitSettings) -> str:
    """Return what to do about a learning rate that is too high."""
    default = "" if settings.default_lr is None else f", default {settings.default_lr:g}"
    return f"lower --lr: it is {settings.lr:g}{default}"


@dataclass
class LossAlarm:
    """Notices that a training diverges: its validation loss is far above the loss of the first batch, or NaN."""

    settings: FitSettings
    start: float = math.nan

    def check(self, event: BatchResult | EpochResult) -> str | None:
        """Return a notice about an epoch, if there is a reason."""
        if isinstance(event, BatchResult):
            if (event.epoch, event.batch) == (1, 1):
                self.start = event.loss
            return None
        if not math.isfinite(event.val_loss):
            what = f"the validation loss of epoch {event.epoch} is not finite, so this epoch cannot be the best"
        elif event.val_loss > _ALARMING * self.start:
            what = (
                f"the validation loss of epoch {event.epoch}, {event.val_loss:.3g}, is far above the loss at the "
                f"start, {self.start:.3g}"
            )
        else:
            return None
        return f"{what}: the training diverges; {advise_lr(self.settings)}"


def end_epoch(trainer: Trainer, val: EvalSource, batches: int, rate: float) -> EpochResult:
    """Validate the averaged weights and advance to the next epoch."""
    progress, settings = trainer.progress, trainer.settings
    started = time.monotonic()
    trainer.dist.broadcast_buffers(trainer.averaged)
    estimates = estimate_batches(trainer.averaged, val, trainer.compute, settings.loss, dist=trainer.dist)
    metrics = compute_quick_metrics(estimates, val.labels)
    score = score_epoch(metrics) if math.isfinite(estimates.loss) else math.inf
    progress.seconds += time.monotonic() - started
    result = EpochResult(
        epoch=progress.epoch + 1,
        train_loss=progress.loss_sum / progress.seen,
        val_loss=estimates.loss,
        val_mae=metrics.mae,
        val_in_bracket=metrics.in_bracket,
        val_accuracy=metrics.accuracy,
        lr=settings.lr * scale_lr((progress.epoch + 1) * batches, settings.epochs * batches, settings.warmup),
        seconds=progress.seconds,
        images_per_second=rate,
        best=score < progress.best,
    )
    progress.best = min(progress.best, score)
    progress.epoch, progress.batch, progress.seen, progress.loss_sum = progress.epoch + 1, 0, 0, 0.0
    return result


class QuickMetrics(NamedTuple):
    """The metrics that choose the best epoch; NaN without labels.

    MAE in years of exact ages, the share of estimates inside their age brackets, 0–1, and the accuracy of gender, 0–1.
    """

    mae: float
    in_bracket: float
    accuracy: float


def compute_quick_metrics(estimates: Estimates, labels: Labels) -> QuickMetrics:
    """Return the metrics of the validation that choose the best epoch."""
    exact, brackets, known = labels.exact, labels.bracketed, labels.gendered
    error = np.abs(estimates.age - labels.low)[exact]
    distance = measure_distance(estimates.age[brackets], labels.low[brackets], labels.high[brackets])
    right = ((estimates.p_female >= 0.5) == (labels.female > 0.5))[known]
    means = (float(part.mean()) if len(part) else math.nan for part in (error, distance == 0, right))
    return QuickMetrics(*means)


def score_epoch(metrics: QuickMetrics) -> float:
    """Return the score of an epoch in years, lowest for the best: error of age, plus 10 × (1 − gender accuracy).

    The error of age is the MAE of exact ages or, for brackets, 10 × the share of estimates outside, which is of
    similar size; the mean of both if the data have both. Without labels a part counts 0.
    """
    errors = [metrics.mae, BRACKET_YEARS * (1 - metrics.in_bracket)]
    known = [error for error in errors if not math.isnan(error)]
    age = sum(known) / len(known) if known else 0.0
    return age + (0.0 if math.isnan(metrics.accuracy) else ACCURACY_YEARS * (1 - metrics.accuracy))


def scale_lr(step: int, total: int, warmup: float) -> float:
    """Return the factor of the learning rate, 0–1: a linear warm-up over a share of all steps, then a half cosine."""
    warmup_steps = max(1, int(total * warmup))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total - warmup_steps)))


def make_optimizer(network: nn.Module, settings: FitSettings) -> torch.optim.Optimizer:
    """Return AdamW over the trainable parameters, without weight decay of biases and norms."""
    from timm.optim import create_optimizer_v2

    # The fused step keeps a GPU from waiting for Python; on a CPU its results would differ in the last digit.
    fused = {"fused": True} if next(network.parameters()).is_cuda else {}
    groups = group_parameters(network, settings)
    optimizer: torch.optim.Optimizer = create_optimizer_v2(groups, "adamw", settings.lr, **fused)
    return optimizer


def group_parameters(network: nn.Module, settings: FitSettings) -> list[dict[str, Any]]:
    """Return the parameter groups: the backbone's own ones, or by layers, or with and without weight decay."""
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay

    own = None
    if isinstance(network, AgeGenderModel):
        own = network.backbone.group_parameters(settings.weight_decay, settings.layer_decay)
        if own is None and settings.layer_decay is not None:
            own = param_groups_layer_decay(
                network.backbone, settings.weight_decay, layer_decay=settings.layer_decay, weight_decay_exclude_1d=True
            )
        if own is not None:
            return [*own, *param_groups_weight_decay(network.heads, settings.weight_decay)]
    # The saved states of interrupted trainings number the parameters in this order.
    return list(reversed(param_groups_weight_decay(network, settings.weight_decay)))


def average_network(network: nn.Module, decay: float) -> AveragedModel:
    """Return the exponential moving average of a network's weights and buffers; the decay rises at the beginning."""

    def update(averages: Any, current: Any, count: Any) -> None:
        steps = int(count)
        # All tensors of a call have one type. torch's own function updates them together, which is faster on a GPU.
        if averages[0].is_floating_point():
            move: Any = get_ema_multi_avg_fn(min(decay, (1 + steps) / (10 + steps)))  # type: ignore[no-untyped-call]
            move(averages, current, count)
        else:
            for average, value in zip(averages, current, strict=True):
                average.copy_(value)

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True)


def syncs_norms(dist: DistContext, compute: Compute) -> bool:
    """Return whether batch norms use the whole batch of several processes; torch supports that on GPUs only."""
    return dist.world_size > 1 and compute.device.type == "cuda"


def fit_biases(heads: TwoHeads, labels: Labels) -> None:
    """Initialise the biases of new heads with the age distribution and the share of females of the training split.

    Without it they start at a uniform distribution, an age of 58, and short trainings end worse than the median.
    """
    shares, known = spread_ages(labels)
    if known.any():
        density = smooth_ages(shares[known].sum(axis=0)) + _PRIOR_FACES
        _get_bias(heads.age).data.copy_(torch.from_numpy(np.log(density / density.sum())))
    female = labels.female[labels.gendered]
    if len(female):
        # One more face of each gender keeps the logit finite if all faces have the same.
        share = (female.sum() + 1) / (len(female) + 2)
        _get_bias(heads.gender).data.fill_(math.log(share / (1 - share)))


def _get_bias(branch: nn.Module) -> Tensor:
    last = [module for module in branch.modules() if isinstance(module, nn.Linear)][-1]
    return last.bias
