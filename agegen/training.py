"""The training loop: a generator of batch and epoch results."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from agegen.data.batches import BatchSource
from agegen.devices import Compute
from agegen.errors import AgegenError
from agegen.evaluation import Estimates, estimate_batches
from agegen.losses import compute_loss, make_age_distribution

EMA_DECAY = 0.998
WARMUP_SHARE = 0.1
# In choosing the best epoch, one point of gender accuracy weighs as much as 0.1 years of MAE.
ACCURACY_YEARS = 10.0


@dataclass(frozen=True)
class FitSettings:
    """How to train; see :class:`agegen.backbone.TrainingDefaults` for the meaning of each."""

    epochs: int
    lr: float
    weight_decay: float


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
    """One epoch, counted from 1, validated with the averaged weights.

    Attributes:
        val_mae: years.
        val_accuracy: of gender, 0–1.
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


def average_network(network: nn.Module) -> AveragedModel:
    """Return the exponential moving average of a network's weights and buffers, with a warm-up."""

    def update(averages: Any, current: Any, count: Any) -> None:
        steps = int(count)
        weight = 1 - min(EMA_DECAY, (1 + steps) / (10 + steps))
        for average, value in zip(averages, current, strict=True):
            if average.is_floating_point():
                average.lerp_(value, weight)
            else:
                average.copy_(value)

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True)


def fit(
    network: nn.Module,
    averaged: AveragedModel,
    train: BatchSource,
    val: BatchSource,
    settings: FitSettings,
    compute: Compute,
) -> Iterator[BatchResult | EpochResult]:
    """Train a network, yielding each batch and epoch; ``averaged`` holds the weights to keep.

    AdamW, a linear warm-up and a cosine decay to zero, EMA of the weights. While the generator
    waits after an :class:`EpochResult`, the caller may read and save ``averaged``.

    Raises:
        AgegenError: the loss is no number any more.
    """
    optimizer = make_optimizer(network, settings)
    total = settings.epochs * len(train)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: scale_lr(step, total))
    best = math.inf
    started = time.monotonic()
    for epoch in range(settings.epochs):
        network.train()
        epoch_started, seen, loss_sum = time.monotonic(), 0, 0.0
        for index, batch in enumerate(train.iterate(epoch), start=1):
            inputs = batch.views[0].to(compute.device, non_blocking=True)
            targets = make_age_distribution(batch.ages.to(compute.device))
            female = batch.female.to(compute.device)
            with compute.autocast():
                outputs = network(inputs)
            loss = compute_loss(outputs, targets, female)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            averaged.update_parameters(network)
            value = loss.item()
            if not math.isfinite(value):
                raise AgegenError(_explain_divergence(epoch, index))
            seen += len(inputs)
            loss_sum += value * len(inputs)
            rate = seen / (time.monotonic() - epoch_started)
            yield BatchResult(epoch + 1, index, len(train), value, rate)
        estimates = estimate_batches(averaged, val, compute)
        mae, accuracy = measure_quickly(estimates, val)
        score = score_epoch(mae, accuracy)
        yield EpochResult(
            epoch=epoch + 1,
            train_loss=loss_sum / seen,
            val_loss=estimates.loss,
            val_mae=mae,
            val_accuracy=accuracy,
            lr=float(schedule.get_last_lr()[0]),
            seconds=time.monotonic() - started,
            images_per_second=rate,
            best=score < best,
        )
        best = min(best, score)


def score_epoch(mae: float, accuracy: float) -> float:
    """Return what the best epoch has least of: MAE in years + 10 × (1 − gender accuracy)."""
    return mae + ACCURACY_YEARS * (1 - accuracy)


def scale_lr(step: int, total: int) -> float:
    """Return the learning rate's factor (0–1) at a step: linear warm-up, then half a cosine."""
    warmup = max(1, int(total * WARMUP_SHARE))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def make_optimizer(network: nn.Module, settings: FitSettings) -> torch.optim.Optimizer:
    """Return AdamW over the trainable parameters; biases and norms don't decay."""
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr)


def measure_quickly(estimates: Estimates, source: BatchSource) -> tuple[float, float]:
    """Return (MAE in years, gender accuracy 0–1) of estimates against a source's labels."""
    ages, female = source.labels
    mae = float(np.abs(estimates.age - ages).mean())
    return mae, float(((estimates.p_female >= 0.5) == (female > 0.5)).mean())


def _explain_divergence(epoch: int, batch: int) -> str:
    return (
        f"the loss is no number any more in epoch {epoch + 1}, batch {batch}; the best epoch so far is kept. "
        "Usual causes: the learning rate is too high (try --lr a tenth of it), or --precision bf16 (try fp32)"
    )
