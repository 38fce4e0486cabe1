"""Inference engines: the interface of all engines, and the default one, onnxruntime, which does not need torch."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from agegen.errors import CheckpointError, shorten
from agegen.files import digest_file
from agegen.machine import count_cores, open_session
from agegen.model.metadata import CheckpointInfo, parse_info


class CropOutputs(NamedTuple):
    """The outputs of a model for N crops, averaged over its views of each: the crop and, with two, its mirror image.

    The fields are also the names of the outputs in ONNX files. ``age`` (N,) and ``spread`` (N,): mean and standard
    deviation of the age distribution in years; ``p_female`` (N,): 0–1; ``distribution`` (N, 117): P(age) for 0–116,
    None if it was not requested.
    """

    age: NDArray[np.float64]
    spread: NDArray[np.float64]
    p_female: NDArray[np.float64]
    distribution: NDArray[np.float64] | None = None

    @property
    def finite(self) -> bool:
        """Whether all numbers are; damaged weights can give NaN or infinity."""
        return all(values is None or bool(np.isfinite(values).all()) for values in self)


ONNX_SUFFIX = ".onnx"
# Of the file that computes in int8, next to a checkpoint of the same name.
INT8_SUFFIX = ".int8.onnx"
# The name of the input in ONNX files, and the names of the outputs.
INPUT = "crops"
DISTRIBUTION = "distribution"
PLAIN_OUTPUTS = tuple(name for name in CropOutputs._fields if name != DISTRIBUTION)
# Crops that a core computes at once; more are divided among the cores. Their activations still fit a core's cache: with
# 64 each takes up to a fifth longer, with fewer than 4 a tenth.
_CORE_CROPS = 16
# Key in the metadata of ONNX files: the SHA-256 of the checkpoint that the file was exported from.
SOURCE_KEY = "agegen_checkpoint"
# Key in the metadata of ONNX files that end with a checksum, so that a damaged checksum is not mistaken for none.
CHECKED_KEY = "agegen_checked"
# Key in the metadata of ONNX files that compute in int8: how their estimates differ from those in float32, as JSON.
INT8_KEY = "agegen_int8"
# What precedes the checksum in a file: ONNX's encoding of one more entry of the metadata, `agegen_sha256`, with 64
# characters. Readers merge it with the others.
_CHECKSUM_START = b"\x72\x51\x0a\x0dagegen_sha256\x12\x40"
_CHECKSUM_LENGTH = len(_CHECKSUM_START) + 64


class Engine(Protocol):
    """A loaded model.

    ``input_size`` is the side of its input crops in pixels; ``precision`` is that of its matrix products, ``fp32``,
    ``bf16`` or ``int8``; ``notice`` says why another engine was not used. ``concurrent``: several threads should run it
    at the same time, because it computes a small batch on one core.
    """

    name: str
    precision: str
    concurrent: bool
    input_size: int
    notice: str

    def run(self, crops: NDArray[np.uint8], distribution: bool = False) -> CropOutputs:
        """Return the outputs for RGB crops (N, input_size, input_size, 3); ``distribution``: also return P(age)."""


class OnnxEngine:
    """An onnxruntime session; see :class:`agegen.engines.engine.Engine`."""

    name = "onnx"
    concurrent = True
    notice = ""

    def __init__(self, session: Any, input_size: int, source: str = "", precision: str = "fp32") -> None:
        """Wrap a session with one thread; ``source`` is the SHA-256 of the checkpoint of its file."""
        self.precision = precision
        self.input_size = input_size
        self.source = source
        self._session = session

    def run(self, crops: NDArray[np.uint8], distribution: bool = False) -> CropOutputs:
        """Return the outputs for RGB crops (N, input_size, input_size, 3); ``distribution``: also return P(age)."""
        names = list(CropOutputs._fields if distribution else PLAIN_OUTPUTS)
        if len(crops) <= _CORE_CROPS:
            outputs = self._session.run(names, {INPUT: crops})
        else:
            parts = [crops[first : first + _CORE_CROPS] for first in range(0, len(crops), _CORE_CROPS)]
            with ThreadPoolExecutor(min(count_cores(), len(parts))) as pool:
                computed = list(pool.map(lambda part: self._session.run(names, {INPUT: part}), parts))
            outputs = [np.concatenate(values) for values in zip(*computed, strict=True)]
        return CropOutputs(*(values.astype(np.float64) for values in outputs))


def load_onnx(
    path: Path, checkpoint: Path | None = None, distribution: bool = False
) -> tuple[CheckpointInfo, OnnxEngine]:
    """Load an ONNX file that agegen exported.

    Args:
        path: of the ONNX file.
        checkpoint: that the file must have been exported from; None accepts any.
        distribution: require the output P(age), which the oldest files lack.

    Raises:
        CheckpointError: the file is unreadable, damaged, not written by agegen, or exported from another checkpoint.
    """
    content = _read_content(path)
    checked = _verify_checksum(path, content)
    session, metadata = _open_content(path, content)
    if CHECKED_KEY in metadata and not checked:
        raise _make_change_error(path)
    info = parse_info(path, metadata)
    if distribution and DISTRIBUTION not in {output.name for output in session.get_outputs()}:
        raise CheckpointError(f"{path} has no output '{DISTRIBUTION}'. {_advise_export(path)}")
    if checkpoint is not None and metadata.get(SOURCE_KEY) != digest_file(checkpoint):
        raise CheckpointError(f"{path} was not exported from {checkpoint}. {_advise_export(path, checkpoint)}")
    try:
        precision = "int8" if INT8_KEY in metadata else "fp32"
        engine = OnnxEngine(session, int(info.input_spec["size"]), metadata.get(SOURCE_KEY, ""), precision)
        # A black crop shows whether the inputs and outputs are as expected.
        outputs = engine.run(np.zeros((1, engine.input_size, engine.input_size, 3), dtype=np.uint8))
        valid = outputs.finite and all(values is None or values.shape == (1,) for values in outputs)
    except Exception as error:  # onnxruntime's errors have no common class
        raise CheckpointError(f"cannot run {path}: {_shorten(error)}") from error
    if not valid:
        raise CheckpointError(f"invalid outputs from {path}: NaN, infinite, or not one value per crop")
    return info, engine


def make_checksum(content: bytes) -> bytes:
    """Return the bytes to append to an ONNX file's content, whose metadata has ``CHECKED_KEY``."""
    return _CHECKSUM_START + hashlib.sha256(content).hexdigest().encode()


def _verify_checksum(path: Path, content: bytes) -> bool:
    """Return whether a file ends with a checksum, which older ones lack.

    Raises:
        CheckpointError: the checksum is wrong.
    """
    body, end = memoryview(content)[:-_CHECKSUM_LENGTH], content[-_CHECKSUM_LENGTH:]
    if not end.startswith(_CHECKSUM_START):
        return False
    if end[-64:] != hashlib.sha256(body).hexdigest().encode():
        raise _make_change_error(path)
    return True


def _advise_export(path: Path, checkpoint: Path | None = None) -> str:
    """Return the command that writes an ONNX file again; that of a run folder is next to its weights."""
    run = "RUN" if checkpoint is None else checkpoint.parent
    int8 = " --int8" if path.name.endswith(INT8_SUFFIX) else ""
    return f"Run `agegen export {run} --onnx {path}{int8}` again."


def _make_change_error(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} has changed since its export: its checksum is wrong. Export or download it again.")


def _read_content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        hint = "Create it with `agegen export RUN --onnx FILE`, or use --engine torch."
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}. {hint}") from error


def _open_content(path: Path, content: bytes) -> tuple[Any, dict[str, str]]:
    """Return the session of a file's content, and its metadata."""
    try:
        if _names_files(content):
            raise CheckpointError(f"{path} keeps weights in other files (external data), which agegen does not read")
        session = open_session(content, threads=1)
        return session, session.get_modelmeta().custom_metadata_map
    except (CheckpointError, ModuleNotFoundError):
        raise
    except Exception as error:  # onnx and onnxruntime raise any; damaged texts a UnicodeDecodeError
        raise CheckpointError(f"{path} is damaged or not an ONNX file: {_shorten(error)}") from error


def _names_files(content: bytes) -> bool:
    """Return whether an ONNX file has external data, which onnxruntime would read from the working directory."""
    # The key of every name of a file; without it, the file need not be parsed.
    if b"location" not in content:
        return False
    import onnx

    return _has_external_data(onnx.ModelProto.FromString(content))


def _has_external_data(message: Any) -> bool:
    """Return whether a part of an ONNX file has a tensor, at any depth, whose values are in another file."""
    if getattr(message, "external_data", None):
        return True
    for field, value in message.ListFields():
        if field.message_type is not None:
            parts = [value] if hasattr(value, "ListFields") else value
            if any(map(_has_external_data, parts)):
                return True
    return False


def _shorten(error: Exception) -> str:
    return shorten((str(error).strip() or type(error).__name__).splitlines()[0])
