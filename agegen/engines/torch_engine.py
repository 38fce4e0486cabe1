"""The torch engine."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from agegen.engines.engine import CropOutputs
from agegen.machine import Compute, choose_compute
from agegen.model.checkpoint import load_checkpoint
from agegen.model.metadata import CheckpointInfo
from agegen.model.network import AgeGenderModel, average_outputs, compute_std, expect_age, make_views, run_views


class TorchEngine:
    """A model on a device; see :class:`agegen.engines.engine.Engine`."""

    name = "torch"
    concurrent = False
    notice = ""

    def __init__(self, model: AgeGenderModel, compute: Compute) -> None:
        self.precision = compute.precision
        self.input_size = model.backbone.input_spec.size
        self._model = model.to(compute.device).eval()
        self._compute = compute

    def run(self, crops: NDArray[np.uint8], distribution: bool = False) -> CropOutputs:
        """Return the outputs for RGB crops (N, input_size, input_size, 3); ``distribution``: also return P(age)."""
        with torch.inference_mode():
            views = make_views(list(crops), self._model.views)
            ages, p_female = average_outputs(run_views(self._model, views, self._compute))
        outputs = expect_age(ages), compute_std(ages), p_female, *([ages] if distribution else [])
        return CropOutputs(*(values.double().cpu().numpy() for values in outputs))


def load_torch(path: Path, device: str = "auto", precision: str = "auto") -> tuple[CheckpointInfo, TorchEngine]:
    """Load a checkpoint into the torch engine.

    Raises:
        AgegenError: see :func:`agegen.model.checkpoint.load_checkpoint` and :func:`agegen.machine.choose_compute`.
    """
    compute = choose_compute(device, precision)
    info, model = load_checkpoint(path)
    return info, TorchEngine(model, compute)


def _use_one_thread() -> None:
    """Use one thread in forked processes (gunicorn --preload, multiprocessing with fork).

    The parent's OpenMP threads do not exist in the child, which would wait for them for ever.
    """
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_use_one_thread)
