"""Inference engines: the interface of all engines, and the default one, onnxruntime, which does not need torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from agegen.errors import CheckpointError
from agegen.files import digest_file
from agegen.machine import count_cores, open_session
from agegen.model.metadata import CheckpointInfo, parse_info


class CropOutputs(NamedTuple):
    """The outputs of a model for N crops, averaged over each crop and its mirror image.

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


# The name of the input in ONNX files, and the names of the outputs.
INPUT = "crops"
DISTRIBUTION = "distribution"
PLAIN_OUTPUTS = tuple(name for name in CropOutputs._fields if name != DISTRIBUTION)
# Key in the metadata of ONNX files: the SHA-256 of the checkpoint that the file was exported from.
SOURCE_KEY = "agegen_checkpoint"


class Engine(Protocol):
    """A loaded model.

    ``input_size`` is the side of its input crops in pixels; ``notice`` says why another engine was not used.
    """

    name: str
    input_size: int
    notice: str

    def run(self, crops: NDArray[np.uint8], distribution: bool = False) -> CropOutputs:
        """Return the outputs for RGB crops (N, input_size, input_size, 3); ``distribution``: also return P(age)."""


class OnnxEngine:
    """An onnxruntime session; see :class:`agegen.engines.engine.Engine`."""

    name = "onnx"
    notice = ""

    def __init__(self, session: Any, input_size: int, source: str = "") -> None:
        """Wrap a session; ``source`` is the SHA-256 of the checkpoint that its file was exported from."""
        self.input_size = input_size
        self.source = source
        self._session = session

    def run(self, crops: NDArray[np.uint8], distribution: bool = False) -> CropOutputs:
        """Return the outputs for RGB crops (N, input_size, input_size, 3); ``distribution``: also return P(age)."""
        names = CropOutputs._fields if distribution else PLAIN_OUTPUTS
        outputs = self._session.run(list(names), {INPUT: crops})
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
    session = _read_session(path)
    metadata = session.get_modelmeta().custom_metadata_map
    info = parse_info(path, metadata)
    if distribution and DISTRIBUTION not in {output.name for output in session.get_outputs()}:
        raise CheckpointError(f"{path} has no output '{DISTRIBUTION}'. Run `agegen export RUN --onnx FILE` again.")
    if checkpoint is not None and metadata.get(SOURCE_KEY) != digest_file(checkpoint):
        raise CheckpointError(f"{path} was not exported from {checkpoint}. Run `agegen export RUN --onnx FILE` again.")
    try:
        engine = OnnxEngine(session, int(info.input_spec["size"]), metadata.get(SOURCE_KEY, ""))
        # A black crop shows whether the inputs and outputs are as expected.
        outputs = engine.run(np.zeros((1, engine.input_size, engine.input_size, 3), dtype=np.uint8))
        valid = outputs.finite and all(values is None or values.shape == (1,) for values in outputs)
    except Exception as error:  # onnxruntime's errors have no common class
        raise CheckpointError(f"cannot run {path}: {_shorten(error)}") from error
    if not valid:
        raise CheckpointError(f"invalid outputs from {path}: NaN, infinite, or not one value per crop")
    return info, engine


def _read_session(path: Path) -> Any:
    try:
        return open_session(path.read_bytes(), count_cores())
    except OSError as error:
        hint = "Create it with `agegen export RUN --onnx FILE`, or use --engine torch."
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}. {hint}") from error
    except Exception as error:  # onnxruntime's errors have no common class
        raise CheckpointError(f"{path} is damaged or not an ONNX file: {_shorten(error)}") from error


def _shorten(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
