"""What a checkpoint says of itself, read without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agegen.errors import CheckpointError

# Raised where an older agegen would misread a checkpoint.
FORMAT = 1
METADATA_KEY = "agegen"


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says of itself.

    Attributes:
        model: name of the backbone plugin, with the argument that it took: ``timm:resnet18``.
        distribution: that brought the plugin, and its ``version``.
        heads: options of the two heads; see :class:`agegen.backbone.HeadConfig`.
        input_spec: of the backbone when it was trained.
        base: ``identity`` and ``fingerprint`` of a frozen backbone, whose tensors are not stored.
        training: epoch, validation metrics and the like; for people.
        crop: the form of the training crops; see :class:`agegen.faces.alignment.AlignmentTemplate`.
        calibration: see :class:`agegen.model.calibration.Calibration`; None for a model that was never calibrated.
        build: keywords that the backbone was built with, besides ``pretrained``.
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
    """Return a checkpoint's metadata without building its model.

    Raises:
        CheckpointError: it isn't there, isn't safetensors, or agegen didn't write it.
    """
    with open_safetensors(path, "numpy") as file:
        return parse_info(path, file.metadata())


@contextmanager
def open_safetensors(path: Path, framework: str) -> Iterator[Any]:
    """Open a safetensors file, for tensors of ``framework``.

    Raises:
        CheckpointError: it isn't there or isn't safetensors, now or while it is read.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path} is no .safetensors file; agegen loads nothing else, for pickles can run code")
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error


def format_info(info: CheckpointInfo) -> dict[str, str]:
    """Return the metadata that a file with a model carries."""
    return {METADATA_KEY: json.dumps({"format": FORMAT, **asdict(info)})}


def parse_info(path: Path, texts: dict[str, str] | None) -> CheckpointInfo:
    """Read what :func:`format_info` gives.

    Raises:
        CheckpointError: agegen didn't write it, or one of another format did.
    """
    try:
        metadata = json.loads((texts or {}).get(METADATA_KEY, "null"))
    except ValueError as error:
        raise CheckpointError(f"{path} has metadata that this agegen can't read: {error}") from error
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path} was not written by agegen: it lacks the metadata '{METADATA_KEY}'")
    if metadata.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path} has another format than this agegen reads ({FORMAT}); update agegen")
    try:
        return CheckpointInfo(**metadata)
    except TypeError as error:
        raise CheckpointError(f"{path} has metadata that this agegen can't read: {error}") from error
