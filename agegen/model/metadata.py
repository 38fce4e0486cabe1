"""Checkpoint metadata, which can be read without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agegen.errors import CheckpointError

# Increased when an older agegen would misread a new checkpoint.
FORMAT = 1
METADATA_KEY = "agegen"


@dataclass(frozen=True)
class CheckpointInfo:
    """The metadata of a checkpoint.

    Attributes:
        model: name of the backbone plugin, with its argument if it took one: ``timm:resnet18``.
        distribution: the package of the plugin, and ``version`` of that package.
        heads: options of the two heads; see :class:`agegen.backbone.HeadConfig`.
        input_spec: of the backbone at training time; see :class:`agegen.backbone.InputSpec`.
        base: ``identity`` and ``fingerprint`` of a frozen backbone, whose tensors are not stored.
        training: epoch, validation metrics and the like, for information.
        crop: alignment of the training crops; see :class:`agegen.faces.alignment.AlignmentTemplate`.
        calibration: see :class:`agegen.model.calibration.Calibration`; None for an uncalibrated model.
        build: keyword arguments other than ``pretrained`` that the backbone was built with.
    """

    model: str
    distribution: str
    version: str
    heads: dict[str, Any]
    input_spec: dict[str, Any]
    base: dict[str, str] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    crop: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    build: dict[str, Any] = field(default_factory=dict)


def read_info(path: Path) -> CheckpointInfo:
    """Return the metadata of a checkpoint without building its model.

    Raises:
        CheckpointError: the file does not exist, is not a safetensors file, or was not written by agegen.
    """
    with open_safetensors(path, "numpy") as file:
        return parse_info(path, file.metadata())


@contextmanager
def open_safetensors(path: Path, framework: str) -> Iterator[Any]:
    """Open a safetensors file; ``framework`` is ``numpy`` or ``pt`` (torch), for the type of its tensors.

    Raises:
        CheckpointError: the file does not exist or is not a safetensors file; also if that shows while it is read.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path} is not a .safetensors file. agegen loads no other format, because pickles can run code."
        )
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from error


def format_info(info: CheckpointInfo) -> dict[str, str]:
    """Return metadata in the form that is stored in safetensors and ONNX files."""
    return {METADATA_KEY: json.dumps({"format": FORMAT, **asdict(info)})}


def parse_info(path: Path, texts: dict[str, str] | None) -> CheckpointInfo:
    """Parse the output of :func:`format_info`.

    Raises:
        CheckpointError: the file was not written by agegen, or in another format.
    """
    try:
        metadata = json.loads((texts or {}).get(METADATA_KEY, "null"))
    except ValueError as error:
        raise CheckpointError(f"{path} has invalid metadata: {error}") from error
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path} was not written by agegen: it lacks the metadata '{METADATA_KEY}'")
    if (found := metadata.pop("format", None)) != FORMAT:
        raise CheckpointError(f"{path} has the format {found}, but this agegen reads {FORMAT}. Upgrade agegen.")
    try:
        return CheckpointInfo(**metadata)
    except TypeError as error:
        raise CheckpointError(f"{path} has invalid metadata: {error}") from error
