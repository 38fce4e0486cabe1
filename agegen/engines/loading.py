"""Choose the engine for a checkpoint: onnxruntime, which starts faster, or torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agegen.engines.engine import Engine, load_onnx
from agegen.errors import AgegenError, CheckpointError
from agegen.model.metadata import CheckpointInfo

ENGINES = ("auto", "onnx", "torch")
ONNX_SUFFIX = ".onnx"


def load_engine(
    path: Path, engine: str = "auto", device: str = "auto", precision: str = "auto", distribution: bool = False
) -> tuple[CheckpointInfo, Engine]:
    """Load a checkpoint, or an exported ``.onnx`` file, into an engine.

    ``auto`` prefers onnxruntime if the checkpoint's ONNX file is in the same folder (same name, ``.onnx``) and the
    options do not require torch, as CUDA and bfloat16 do. If that file cannot be used, torch reads the checkpoint, and
    the engine has a ``notice``. ``distribution``: P(age) will be requested.

    Raises:
        AgegenError: the file cannot be used, or ``engine``, ``device`` and ``precision`` do not fit it.
    """
    if engine not in ENGINES:
        raise AgegenError(f"invalid value for --engine: '{engine}'. Choose {', '.join(ENGINES)}.")
    plain = device in ("auto", "cpu") and precision in ("auto", "fp32")
    if engine == "onnx" and not plain:
        raise AgegenError("--engine onnx runs on the CPU in float32. Remove --device and --precision, or use torch.")
    if path.suffix == ONNX_SUFFIX:
        if engine == "torch" or not plain:
            raise AgegenError(f"{path} requires --engine onnx, on the CPU in float32. For torch, give its run instead.")
        return load_onnx(path, distribution=distribution)
    exported = path.with_suffix(ONNX_SUFFIX)
    if engine == "onnx":
        return load_onnx(exported, path, distribution)
    notice = ""
    if engine == "auto" and plain and exported.is_file():
        try:
            return load_onnx(exported, path, distribution)
        except CheckpointError as error:
            notice = f"{error} (using torch with {path.name} instead)"
    from agegen.engines.torch_engine import load_torch

    info, loaded = load_torch(path, device, precision)
    _check_outputs(path, loaded)
    loaded.notice = notice
    return info, loaded


def _check_outputs(path: Path, engine: Engine) -> None:
    """Check that a model gives numbers, at least for a black crop.

    Raises:
        CheckpointError: it does not.
    """
    outputs = engine.run(np.zeros((1, engine.input_size, engine.input_size, 3), dtype=np.uint8))
    if not outputs.finite:
        raise CheckpointError(f"invalid outputs from {path}: NaN or infinite. Its weights are damaged.")
