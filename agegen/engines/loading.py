"""Choose the engine for a checkpoint: onnxruntime, which starts faster, or torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agegen.engines.engine import INT8_SUFFIX, ONNX_SUFFIX, Engine, load_onnx
from agegen.errors import AgegenError, CheckpointError
from agegen.model.metadata import CheckpointInfo

__all__ = ["ENGINES", "ONNX_SUFFIX", "load_engine"]

ENGINES = ("auto", "onnx", "torch")
# The precisions in which onnxruntime computes here.
_ONNX_PRECISIONS = ("auto", "fp32", "int8")


def load_engine(
    path: Path, engine: str = "auto", device: str = "auto", precision: str = "auto", distribution: bool = False
) -> tuple[CheckpointInfo, Engine]:
    """Load a checkpoint, or an exported ``.onnx`` file, into an engine.

    ``auto`` prefers onnxruntime if an ONNX file of the checkpoint is in the same folder (same name, ``.int8.onnx`` or
    ``.onnx``, preferred in this order) and the options do not require torch, as CUDA and bfloat16 do. If such a file
    cannot be used, the next one is, or torch with the checkpoint itself, and the engine has a ``notice``.
    ``distribution``: P(age) will be requested.

    Raises:
        AgegenError: the file cannot be used, or ``engine``, ``device`` and ``precision`` do not fit it.
    """
    plain = _check_request(path, engine, device, precision)
    if path.suffix == ONNX_SUFFIX:
        return _load_exported(path, None, precision, distribution)
    notices: list[str] = []
    files = _list_exported(path, engine, precision) if plain and engine != "torch" else []
    for file, following in zip(files, [*files[1:], path], strict=False):
        try:
            info, onnx_engine = _load_exported(file, path, precision, distribution)
        except CheckpointError as error:
            if engine == "onnx" or precision == "int8":
                raise
            other = f"torch with {path.name}" if following is path else following.name
            notices.append(f"{error} (using {other} instead)")
        else:
            onnx_engine.notice = "; ".join(notices)
            return info, onnx_engine
    from agegen.engines.torch_engine import load_torch

    info, torch_engine = load_torch(path, device, precision)
    _check_outputs(path, torch_engine)
    torch_engine.notice = "; ".join(notices)
    return info, torch_engine


def _check_request(path: Path, engine: str, device: str, precision: str) -> bool:
    """Return whether onnxruntime supports the device and the precision.

    Raises:
        AgegenError: ``engine``, ``device`` and ``precision`` do not fit each other or the file.
    """
    if engine not in ENGINES:
        raise AgegenError(f"invalid value for --engine: '{engine}'. Choose {', '.join(ENGINES)}.")
    plain = device in ("auto", "cpu") and precision in _ONNX_PRECISIONS
    if engine == "onnx" and not plain:
        raise AgegenError(
            "--engine onnx runs on the CPU in float32 or int8. Remove --device and --precision, or use torch."
        )
    if precision == "int8" and (engine == "torch" or not plain):
        raise AgegenError("--precision int8 requires onnxruntime on the CPU. Remove --engine and --device.")
    if path.suffix == ONNX_SUFFIX and (engine == "torch" or not plain):
        raise AgegenError(f"{path} requires --engine onnx, on the CPU. For torch, give its run instead.")
    return plain


def _list_exported(path: Path, engine: str, precision: str) -> list[Path]:
    """Return the ONNX files of a checkpoint to try, the best first.

    Raises:
        CheckpointError: int8 is asked for, but the file is missing.
    """
    int8, plain = path.with_suffix(INT8_SUFFIX), path.with_suffix(ONNX_SUFFIX)
    found = [file for file in {"auto": (int8, plain), "int8": (int8,), "fp32": (plain,)}[precision] if file.is_file()]
    if precision == "int8" and not found:
        raise CheckpointError(
            f"{path} has no int8 file next to it. Remove --precision int8, or write the file with `agegen export RUN "
            f"--onnx {int8.name} --int8`."
        )
    if engine == "onnx":
        # No other file is tried. Without any, the error says how to write one.
        return found[:1] or [plain]
    return found


def _load_exported(
    path: Path, checkpoint: Path | None, precision: str, distribution: bool
) -> tuple[CheckpointInfo, Engine]:
    """Load an ONNX file of a checkpoint; see :func:`agegen.engines.engine.load_onnx`.

    Raises:
        CheckpointError: it cannot be used, or computes in another precision.
    """
    info, engine = load_onnx(path, checkpoint, distribution)
    if precision not in ("auto", engine.precision):
        raise CheckpointError(f"{path} computes in {engine.precision}, not in {precision}. Give another file.")
    return info, engine


def _check_outputs(path: Path, engine: Engine) -> None:
    """Check that a model gives numbers, at least for a black crop.

    Raises:
        CheckpointError: it does not.
    """
    outputs = engine.run(np.zeros((1, engine.input_size, engine.input_size, 3), dtype=np.uint8))
    if not outputs.finite:
        raise CheckpointError(f"invalid outputs from {path}: NaN or infinite. Its weights are damaged.")
