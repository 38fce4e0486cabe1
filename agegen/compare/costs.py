"""The cost of a model: parameters, file size, time to convergence, and speed."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from agegen.compare.models import ComparedRun
from agegen.data.scan import ProgressHook
from agegen.errors import AgegenError
from agegen.evaluate.metrics import Floats
from agegen.machine import choose_compute
from agegen.model.checkpoint import load_checkpoint
from agegen.model.network import AgeGenderModel, count_parameters, run_views
from agegen.runs import RunFolder, compute_training_seconds

# After convergence, the validation losses of neighbouring epochs still differ by about as much.
CONVERGED_WITHIN = 0.02
# A single low loss is not convergence: the mean of three epochs counts.
SMOOTHED_EPOCHS = 3
# A batch as in prediction; the median of three repeats ignores one disturbance.
_SPEED_FACES, _SPEED_REPEATS = 32, 3


@dataclass(frozen=True)
class Cost:
    """What a model costs. Fields that only a run folder has are None for weights without one.

    Attributes:
        parameters: of the whole model, and ``trainable`` those that were trained.
        checkpoint_bytes: the size of the checkpoint.
        epochs: of the training.
        settled_epoch: the epoch of convergence; see :func:`find_converged_epoch`.
        settled_minutes: from the first step to that epoch.
        minutes: of the whole training with loading and evaluation, without computing cached features.
        feature_minutes: for computing cached features, once for all trainings on the same data; 0 for trainable
            backbones.
        images_per_second: of the whole model on decoded crops, all its views; None if the model cannot be loaded.
    """

    parameters: int
    trainable: int
    checkpoint_bytes: int
    epochs: int | None
    settled_epoch: int | None
    settled_minutes: float | None
    minutes: float | None
    feature_minutes: float | None
    images_per_second: float | None


def measure_cost(training: ComparedRun, name: str, device: str, on_progress: ProgressHook) -> Cost:
    """Return the cost of a training, and measure its speed on ``device``; ``name`` is shown as progress."""
    if training.run is not None:
        return _measure_run(training.run, name, device, on_progress)
    _, model = load_checkpoint(training.checkpoint)
    total, trainable = count_parameters(model)
    size, speed = training.checkpoint.stat().st_size, measure_speed(model, name, device, on_progress)
    return Cost(total, trainable, size, None, None, None, None, None, speed)


def _measure_run(run: RunFolder, name: str, device: str, on_progress: ProgressHook) -> Cost:
    record = run.read()
    epochs = run.read_epochs()
    converged = find_converged_epoch(epochs["val_loss"].to_numpy(dtype=float))
    try:
        speed: float | None = measure_speed(load_checkpoint(run.checkpoint)[1], name, device, on_progress)
    except AgegenError:
        speed = None
    return Cost(
        parameters=int(record["parameters"]["total"]),
        trainable=int(record["parameters"]["trainable"]),
        checkpoint_bytes=run.checkpoint.stat().st_size,
        epochs=len(epochs),
        settled_epoch=converged,
        settled_minutes=round(float(epochs["seconds"].iloc[converged - 1]) / 60, 2),
        minutes=round(compute_training_seconds(record) / 60, 2),
        feature_minutes=round(float(record["seconds"].get("features", 0.0)) / 60, 2),
        images_per_second=speed,
    )


def find_converged_epoch(val_loss: Floats) -> int:
    """Return the epoch, from 1, at which the training has converged.

    It is the first epoch from which on the validation loss, smoothed as the mean of an epoch and up to two before it,
    stays within 2 % of its lowest value.
    """
    smoothed = np.array([val_loss[max(0, end - SMOOTHED_EPOCHS) : end].mean() for end in range(1, len(val_loss) + 1)])
    outside = np.flatnonzero(smoothed > smoothed.min() * (1 + CONVERGED_WITHIN))
    # If the last epochs diverge again, the last epoch counts.
    return min(int(outside[-1]) + 2 if len(outside) else 1, len(val_loss))


def measure_speed(model: AgeGenderModel, name: str, device: str, on_progress: ProgressHook) -> float:
    """Return the throughput of the whole model in crops per second: decoded crops, all its views, batches of 32."""
    import torch

    compute = choose_compute(device)
    model = model.to(compute.device)
    size = model.backbone.input_spec.size
    views = [torch.randint(0, 256, (_SPEED_FACES, 3, size, size), dtype=torch.uint8)] * model.views
    seconds = []
    with torch.inference_mode():
        for repeat in range(_SPEED_REPEATS + 1):
            started = time.monotonic()
            outputs = run_views(model, views, compute)
            outputs[-1].age_logits.cpu()  # waits for the device
            seconds.append(time.monotonic() - started)
            on_progress(f"measuring the speed of {name}", repeat + 1, _SPEED_REPEATS + 1)
    return round(_SPEED_FACES / float(np.median(seconds[1:])), 1)
