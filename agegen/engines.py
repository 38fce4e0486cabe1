"""What runs a model on aligned crops: onnxruntime, which starts at once, or torch."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from agegen.checkpoint_info import CheckpointInfo
from agegen.errors import AgegenError, CheckpointError

ENGINES = ("auto", "onnx", "torch")
ONNX_SUFFIX = ".onnx"


class CropOutputs(NamedTuple):
    """What a model says of N crops, the plain and the mirrored view of each averaged.

    ``age`` (N,) and ``spread`` (N,), expectation and standard deviation of the age distribution in years;
    ``p_female`` (N,), 0–1.
    """

    age: NDArray[np.float64]
    spread: NDArray[np.float64]
    p_female: NDArray[np.float64]


class Engine(Protocol):
    """A loaded model; ``input_size`` is the side in pixels of the crops that it takes."""

    name: str
    input_size: int

    def run(self, crops: NDArray[np.uint8]) -> CropOutputs:
        """Return estimates for RGB crops (N, input_size, input_size, 3)."""


def load_engine(
    path: Path, engine: str = "auto", device: str = "auto", precision: str = "auto"
) -> tuple[CheckpointInfo, Engine]:
    """Load a checkpoint, or an exported ``.onnx`` file, into the engine that suits it.

    ``auto`` takes onnxruntime where the checkpoint's ONNX file lies beside it (same name, ``.onnx``) and
    neither CUDA nor bfloat16 is asked for, which are torch's.

    Raises:
        AgegenError: the file can't be used, or ``engine``, ``device`` and ``precision`` don't fit it.
    """
    from agegen.onnx_engine import load_onnx

    if engine not in ENGINES:
        raise AgegenError(f"--engine is one of {', '.join(ENGINES)}")
    plain = device in ("auto", "cpu") and precision in ("auto", "fp32")
    if engine == "onnx" and not plain:
        raise AgegenError("--engine onnx computes on the CPU in float32; leave --device and --precision, or use torch")
    if path.suffix == ONNX_SUFFIX:
        if engine == "torch" or not plain:
            raise AgegenError(f"{path} runs with --engine onnx alone, on the CPU in float32; give the run instead")
        return load_onnx(path)
    beside = path.with_suffix(ONNX_SUFFIX)
    if engine == "onnx":
        return load_onnx(beside, path)
    if engine == "auto" and plain and beside.is_file():
        # One that is damaged or left over from another checkpoint is no reason to fail: torch reads the checkpoint.
        with suppress(CheckpointError):
            return load_onnx(beside, path)
    from agegen.torch_engine import load_torch

    return load_torch(path, device, precision)
