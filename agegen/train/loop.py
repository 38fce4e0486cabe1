"""The training loop: a generator of batch and epoch results."""

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
    """How to train; see :class:`agegen.backbone.TrainingDefaults` for the meaning of each."""

    epochs: int
    lr: float
    weight_decay: float
    warmup: float = TrainingDefaults.warmup
    ema_decay: float = TrainingDefaults.ema_decay
    layer_decay: float | None = None
    loss: LossSettings = TrainingDefaults.loss


@dataclass(frozen=True)
class BatchResult:
    """One step: ``batch`` of ``batches`` (from 1) of ``epoch`` (from 1).

    ``waiting`` is the share, 0–1, of this epoch's time that went by in waiting for data.
    """

    epoch: int
    batch: int
    batches: int
    loss: float
    images_per_second: float
    waiting: float


@dataclass(frozen=True)
class EpochResult:
    """One epoch, counted from 1, validated with the averaged weights.

    Attributes:
        val_mae: years, of exact ages; NaN without any.
        val_accuracy: of gender, 0–1.
        val_in_bracket: the share, 0–1, of estimates in the brackets that label them; NaN without any.
        seconds: since the first step of the training, validation included.
        images_per_second: in training.
        best: whether this is the best epoch so far (lowest :func:`score_epoch`).
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
    val_in_bracket: float = math.nan


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
class TrainNotice:
    """What the user should know in the course of a training."""

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
    """A study that is whole: its folder, its summary as it was written, and wall time in seconds."""

    path: Path
    summary: dict[str, Any]
    seconds: float


TrainEvent = TrainStart | TrainNotice | BatchResult | EpochResult | TrainResult
StudyEvent = TrainEvent | PartStart | StudyResult


def make_optimizer(network: nn.Module, settings: FitSettings) -> torch.optim.Optimizer:
    """Return AdamW over the trainable parameters; biases and norms don't decay."""
    from timm.optim import create_optimizer_v2

    # In one piece where there is a GPU, which else waits for Python; on CPUs the usual steps stay to the last digit.
    fused = {"fused": True} if next(network.parameters()).is_cuda else {}
    groups = group_parameters(network, settings)
    optimizer: torch.optim.Optimizer = create_optimizer_v2(groups, "adamw", settings.lr, **fused)
    return optimizer


def group_parameters(network: nn.Module, settings: FitSettings) -> list[dict[str, Any]]:
    """Return the groups of trainable parameters: the backbone's own, by layers, or those that decay and those not."""
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
    # In this order the states of interrupted trainings number their parameters.
    return list(reversed(param_groups_weight_decay(network, settings.weight_decay)))


# Ages that nobody has in the training split stay possible.
_LEAST_FACES = 1e-3
# What torch looks for, to compile for a CPU.
_COMPILERS = ("g++", "clang++")
# In choosing the best epoch, one point of gender accuracy weighs as much as 0.1 years of MAE.
ACCURACY_YEARS = 10.0
# Where half of the estimates lie in their brackets of ten years, exact ages have an MAE of about 5.
BRACKET_YEARS = 10.0


class QuickMetrics(NamedTuple):
    """Metrics of a validation: MAE in years of exact ages, shares 0–1 in the bracket and of right genders."""

    mae: float
    in_bracket: float
    accuracy: float


@dataclass
class Progress:
    """How far a training is; with the tensors of a :class:`Trainer`, all that going on needs.

    Attributes:
        epoch: epochs that are over, and ``batch`` batches that are over in the one after them.
        seen: faces in this epoch so far, and ``loss_sum`` the sum of their losses.
        best: the lowest :func:`score_epoch` so far.
        seconds: of training so far, over all processes.
    """

    epoch: int = 0
    batch: int = 0
    seen: int = 0
    loss_sum: float = 0.0
    best: float = math.inf
    seconds: float = 0.0


@dataclass
class Trainer:
    """What a training changes: the network, its average (the weights to keep), the optimiser, the progress.

    ``step`` is the network as it is run in training: compiled, and with its gradients averaged over the ``team``.
    """

    network: nn.Module
    averaged: AveragedModel
    optimizer: torch.optim.Optimizer
    settings: FitSettings
    compute: Compute
    step: nn.Module
    dist: DistContext = SINGLE_PROCESS
    progress: Progress = field(default_factory=Progress)


def make_trainer(
    network: nn.Module,
    settings: FitSettings,
    compute: Compute,
    dist: DistContext = SINGLE_PROCESS,
    compiled: bool = False,
) -> Trainer:
    """Return a trainer at the start: AdamW, and the EMA of the weights; ``compiled``: whether torch compiles it.

    Raises:
        AgegenError: torch can't compile here.
    """
    if compiled and compute.device.type == "cpu" and not (os.environ.get("CXX") or any(map(shutil.which, _COMPILERS))):
        raise AgegenError("--compile wants a C++ compiler (g++ or clang++), and none is here; leave it out")
    if syncs_norms(dist, compute):
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    averaged = average_network(network, settings.ema_decay)
    optimizer = make_optimizer(network, settings)
    step: Any = torch.compile(network) if compiled else network
    return Trainer(network, averaged, optimizer, settings, compute, dist.wrap(step), dist)


def syncs_norms(dist: DistContext, compute: Compute) -> bool:
    """Return whether batch norms of several processes go by all faces of a batch: torch can do so on GPUs alone."""
    return dist.world_size > 1 and compute.device.type == "cuda"


def fit_biases(heads: TwoHeads, labels: Labels) -> None:
    """Let fresh heads begin at what one would say without looking: the training split's ages and share of females.

    Otherwise they begin at an even distribution, an age of 58, and short trainings end worse than the median.
    """
    shares, known = spread_ages(labels)
    if known.any():
        # A thousandth of a face in each year: ages that nobody has stay possible.
        density = smooth_ages(shares[known].sum(axis=0)) + _LEAST_FACES
        _get_bias(heads.age).data.copy_(torch.from_numpy(np.log(density / density.sum())))
    female = labels.female[labels.gendered]
    if len(female):
        # As if one face of either gender were there besides, so that one gender alone gives a finite logit.
        share = (female.sum() + 1) / (len(female) + 2)
        _get_bias(heads.gender).data.fill_(math.log(share / (1 - share)))


def _get_bias(branch: nn.Module) -> Tensor:
    last = [module for module in branch.modules() if isinstance(module, nn.Linear)][-1]
    return last.bias


def average_network(network: nn.Module, decay: float) -> AveragedModel:
    """Return the exponential moving average of a network's weights and buffers, with a warm-up."""

    def update(averages: Any, current: Any, count: Any) -> None:
        steps = int(count)
        # All tensors of a call are of one type; torch's own moves them together, which saves a GPU its waiting.
        if averages[0].is_floating_point():
            move: Any = get_ema_multi_avg_fn(min(decay, (1 + steps) / (10 + steps)))  # type: ignore[no-untyped-call]
            move(averages, current, count)
        else:
            for average, value in zip(averages, current, strict=True):
                average.copy_(value)

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True)


def fit(trainer: Trainer, train: BatchSource, val: EvalSource) -> Iterator[BatchResult | EpochResult]:
    """Train from where the trainer stands, yielding each batch and epoch.

    AdamW, a linear warm-up and a cosine decay to zero, EMA of the weights. While the generator waits
    after a result, the trainer is whole: the caller may read and save it.

    Raises:
        AgegenError: the loss is no number any more.
    """
    progress = trainer.progress
    while progress.epoch < trainer.settings.epochs:
        seen_before, seconds_before, rate, waited = progress.seen, progress.seconds, 0.0, 0.0
        trainer.network.train()
        mark = time.monotonic()
        for batch in train.iterate(progress.epoch, progress.batch):
            waited += time.monotonic() - mark
            loss = take_step(trainer, batch, len(train))
            progress.batch += 1
            progress.seen += batch.size
            progress.loss_sum += loss * batch.size
            progress.seconds += time.monotonic() - mark
            spent = max(progress.seconds - seconds_before, 1e-9)
            rate = (progress.seen - seen_before) / spent
            yield BatchResult(progress.epoch + 1, progress.batch, len(train), loss, rate, waited / spent)
            mark = time.monotonic()
        yield end_epoch(trainer, val, len(train), rate)


def take_step(trainer: Trainer, batch: Batch, batches: int) -> float:
    """Take one step on a batch of an epoch of ``batches``; return its loss.

    Raises:
        AgegenError: the loss is no number any more.
    """
    settings, compute, progress = trainer.settings, trainer.compute, trainer.progress
    factor = scale_lr(progress.epoch * batches + progress.batch, settings.epochs * batches, settings.warmup)
    for group in trainer.optimizer.param_groups:
        # Layers may learn at rates of their own: timm's `lr_scale`.
        group["lr"] = settings.lr * factor * group.get("lr_scale", 1.0)
    inputs = batch.views[0].to(compute.device, non_blocking=True)
    with compute.autocast():
        outputs = trainer.step(inputs)
    # This process' part of the batch's loss. Gradients are averaged over the team where losses add up.
    loss = compute_loss(outputs, batch.targets.to(compute.device), settings.loss, batch.counts)
    value = float(trainer.dist.reduce_sum(loss.detach().clone()).item())
    trainer.optimizer.zero_grad(set_to_none=True)
    (loss * trainer.dist.world_size).backward()  # type: ignore[no-untyped-call]
    # Before the step, so that what is no number never gets into the weights, nor into a state that is saved.
    if not (math.isfinite(value) and _are_finite(trainer.network)):
        raise AgegenError(_explain_divergence(progress.epoch, progress.batch + 1))
    trainer.optimizer.step()
    trainer.averaged.update_parameters(trainer.network)
    return value


def _are_finite(network: nn.Module) -> bool:
    """Return whether all gradients are numbers: their norm is."""
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return not gradients or bool(torch.isfinite(nn.utils.get_total_norm(gradients)))


def end_epoch(trainer: Trainer, val: EvalSource, batches: int, rate: float) -> EpochResult:
    """Validate the averaged weights and move on to the next epoch."""
    progress, settings = trainer.progress, trainer.settings
    started = time.monotonic()
    trainer.dist.broadcast_buffers(trainer.averaged)
    estimates = estimate_batches(trainer.averaged, val, trainer.compute, settings.loss, dist=trainer.dist)
    quick = measure_quickly(estimates, val.labels)
    score = score_epoch(quick)
    progress.seconds += time.monotonic() - started
    result = EpochResult(
        epoch=progress.epoch + 1,
        train_loss=progress.loss_sum / progress.seen,
        val_loss=estimates.loss,
        val_mae=quick.mae,
        val_in_bracket=quick.in_bracket,
        val_accuracy=quick.accuracy,
        lr=settings.lr * scale_lr((progress.epoch + 1) * batches, settings.epochs * batches, settings.warmup),
        seconds=progress.seconds,
        images_per_second=rate,
        best=score < progress.best,
    )
    progress.best = min(progress.best, score)
    progress.epoch, progress.batch, progress.seen, progress.loss_sum = progress.epoch + 1, 0, 0, 0.0
    return result


def score_epoch(quick: QuickMetrics) -> float:
    """Return what the best epoch has least of, in years: the error in age, and 10 × the share of wrong genders.

    The error in age is the MAE of exact ages; of brackets, 10 × the share of estimates outside, which is of its size;
    of both, their mean. What has no labels counts nothing.
    """
    ages = [quick.mae, BRACKET_YEARS * (1 - quick.in_bracket)]
    known = [value for value in ages if not math.isnan(value)]
    wrong = 0.0 if math.isnan(quick.accuracy) else ACCURACY_YEARS * (1 - quick.accuracy)
    return (sum(known) / len(known) if known else 0.0) + wrong


def scale_lr(step: int, total: int, share: float) -> float:
    """Return the learning rate's factor (0–1) at a step: linear warm-up over a share of them, then half a cosine."""
    warmup = max(1, int(total * share))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def measure_quickly(estimates: Estimates, labels: Labels) -> QuickMetrics:
    """Return what the best epoch is chosen by, of estimates against labels; NaN for what has none."""
    exact, brackets, known = labels.exact, labels.bracketed, labels.gendered
    error = np.abs(estimates.age - labels.low)[exact]
    distance = measure_distance(estimates.age[brackets], labels.low[brackets], labels.high[brackets])
    right = ((estimates.p_female >= 0.5) == (labels.female > 0.5))[known]
    means = (float(part.mean()) if len(part) else math.nan for part in (error, distance == 0, right))
    return QuickMetrics(*means)


def _explain_divergence(epoch: int, batch: int) -> str:
    return (
        f"the loss or its gradient is no number any more in epoch {epoch + 1}, batch {batch}; the best epoch so far is "
        "kept. "
        "Usual causes: the learning rate is too high (try --lr a tenth of it), or --precision bf16 (try fp32)"
    )
