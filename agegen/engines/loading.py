"""What runs a model on aligned crops: onnxruntime, which starts at once, or torch."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from agegen.engines.engine import Engine
from agegen.errors import AgegenError, CheckpointError
from agegen.model.metadata import CheckpointInfo

ENGINES = ("auto", "onnx", "torch")
ONNX_SUFFIX = ".onnx"


def load_engine(
    path: Path, engine: str = "auto", device: str = "auto", precision: str = "auto", distribution: bool = False
) -> tuple[CheckpointInfo, Engine]:
    """Load a checkpoint, or an exported ``.onnx`` file, into the engine that suits it.

    ``auto`` takes onnxruntime where the checkpoint's ONNX file lies beside it (same name, ``.onnx``) and
    neither CUDA nor bfloat16 is asked for, which are torch's. ``distribution``: whether P(age) is wanted.

    Raises:
        AgegenError: the file can't be used, or ``engine``, ``device`` and ``precision`` don't fit it.
    """
    from agegen.engines.engine import load_onnx

    if engine not in ENGINES:
        raise AgegenError(f"--engine is one of {', '.join(ENGINES)}")
    plain = device in ("auto", "cpu") and precision in ("auto", "fp32")
    if engine == "onnx" and not plain:
        raise AgegenError("--engine onnx computes on the CPU in float32; leave --device and --precision, or use torch")
    if path.suffix == ONNX_SUFFIX:
        if engine == "torch" or not plain:
            raise AgegenError(f"{path} runs with --engine onnx alone, on the CPU in float32; give the run instead")
        return load_onnx(path, distribution=distribution)
    beside = path.with_suffix(ONNX_SUFFIX)
    if engine == "onnx":
        return load_onnx(beside, path, distribution)
    if engine == "auto" and plain and beside.is_file():
        # One that is damaged or left over from another checkpoint is no reason to fail: torch reads the checkpoint.
        with suppress(CheckpointError):
            return load_onnx(beside, path, distribution)
    from agegen.engines.torch_engine import load_torch

    return load_torch(path, device, precision)
