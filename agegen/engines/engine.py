"""Engines run a model on crops: what every engine gives, and the default one, onnxruntime, which needs no torch."""

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
    """What a model says of N crops, the plain and the mirrored view of each averaged.

    ``age`` (N,) and ``spread`` (N,), expectation and standard deviation of the age distribution in years;
    ``p_female`` (N,), 0–1; ``distribution`` (N, 117), P(age) over 0–116, where it was asked for.
    """

    age: NDArray[np.float64]
    spread: NDArray[np.float64]
    p_female: NDArray[np.float64]
    distribution: NDArray[np.float64] | None = None


class Engine(Protocol):
    """A loaded model; ``input_size`` is the side in pixels of the crops that it takes."""

    name: str
    input_size: int

    def run(self, crops: NDArray[np.uint8], distribution: bool = False) -> CropOutputs:
        """Return estimates for RGB crops (N, input_size, input_size, 3); with P(age) where ``distribution`` says."""


# The checkpoint that an ONNX file was made from, by its SHA-256, stands in its metadata under this key.
SOURCE_KEY = "agegen_checkpoint"
INPUT = "crops"
DISTRIBUTION = "distribution"
PLAIN_OUTPUTS = tuple(name for name in CropOutputs._fields if name != DISTRIBUTION)


class OnnxEngine:
    """An onnxruntime session; see :class:`agegen.engines.engine.Engine`."""

    name = "onnx"

    def __init__(self, session: Any, input_size: int, source: str = "") -> None:
        """Take a session; ``source`` is the SHA-256 of the checkpoint that its file was made from."""
        self.input_size = input_size
        self.source = source
        self._session = session

    def run(self, crops: NDArray[np.uint8], distribution: bool = False) -> CropOutputs:
        """Return estimates for RGB crops (N, input_size, input_size, 3); with P(age) where ``distribution`` says."""
        wanted = CropOutputs._fields if distribution else PLAIN_OUTPUTS
        outputs = self._session.run(list(wanted), {INPUT: crops})
        return CropOutputs(*(values.astype(np.float64) for values in outputs))


def load_onnx(
    path: Path, checkpoint: Path | None = None, distribution: bool = False
) -> tuple[CheckpointInfo, OnnxEngine]:
    """Load an ONNX file that agegen exported, from ``checkpoint`` where one is given.

    ``distribution``: whether it must give P(age); files of agegen before 0.2 don't.

    Raises:
        CheckpointError: it can't be read, is damaged, agegen didn't write it, or it was made from another checkpoint.
    """
    session = _read_session(path)
    metadata = session.get_modelmeta().custom_metadata_map
    info = parse_info(path, metadata)
    if distribution and DISTRIBUTION not in {output.name for output in session.get_outputs()}:
        raise CheckpointError(f"{path} gives no distribution; make it anew with `agegen export RUN --onnx FILE`")
    if checkpoint is not None and metadata.get(SOURCE_KEY) != digest_file(checkpoint):
        raise CheckpointError(f"{path} was not made from {checkpoint}; make it anew with `agegen export RUN --onnx`")
    try:
        engine = OnnxEngine(session, int(info.input_spec["size"]), metadata.get(SOURCE_KEY, ""))
        # One black crop shows whether the file takes and gives what it should.
        outputs = engine.run(np.zeros((1, engine.input_size, engine.input_size, 3), dtype=np.uint8))
        sound = all(values is None or (values.shape == (1,) and np.isfinite(values).all()) for values in outputs)
    except Exception as error:  # onnxruntime's own errors share no class
        raise CheckpointError(f"{path} can't be run: {_shorten(error)}") from error
    if not sound:
        raise CheckpointError(f"{path} gives values that are no numbers, or not one for each crop")
    return info, engine


def _read_session(path: Path) -> Any:
    try:
        return open_session(path.read_bytes(), count_cores())
    except OSError as error:
        hint = "make it with `agegen export RUN --onnx FILE`, or use --engine torch"
        raise CheckpointError(f"can't read {path}: {error.strerror or error}; {hint}") from error
    except Exception as error:  # onnxruntime's own errors share no class
        raise CheckpointError(f"{path} is damaged or no ONNX file: {_shorten(error)}") from error


def _shorten(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
