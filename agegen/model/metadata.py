"""Checkpoint metadata, which can be read without torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from agegen.data.labels import MAX_AGE
from agegen.errors import CheckpointError, shorten
from agegen.files import ABSENT, Check, Limits, Schema, ShortText, find_mismatch
from agegen.model.calibration import Calibration
from agegen.plugins import is_plain_argument

# Increased when an older agegen would misread a new checkpoint.
FORMAT = 1
METADATA_KEY = "agegen"
# The header of a safetensors file describes each tensor in about 100 bytes. The largest networks of timm have 3,000
# tensors; a header of 80,000, or of much metadata, would only take time and memory.
_MAX_HEADER_BYTES = 8_000_000

_MODEL = Check(
    "NAME or NAME:ARGUMENT, where the argument is not a path or an address",
    lambda name: is_plain_argument(name.partition(":")[2]),
)
# The widest layer of a head; the sizes of networks are bounded before they are built.
_Width = Annotated[int, Limits(1, 65_536)]
# The side of an input in pixels. The largest of timm is 1024.
_Side = Annotated[int, Limits(1, 4096)]
_Share = Annotated[float, Limits(0, 1)]
_Mean = Annotated[float, Limits(-1000, 1000)]
_Deviation = Annotated[float, Limits(1e-6, 1000)]
# As a fraction of a crop's side. Tight crops have some landmarks outside.
_Coordinate = Annotated[float, Limits(-2, 3)]
_Point = tuple[_Coordinate, _Coordinate]


class _Heads(Schema, others=None):
    hidden: _Width = ABSENT
    dropout: _Share = ABSENT
    feature_dropout: _Share = ABSENT
    standardize: bool = ABSENT
    age_hidden: _Width | None = ABSENT
    gender_hidden: _Width | None = ABSENT


class _InputSpec(Schema, others=None):
    size: _Side
    mean: tuple[_Mean, _Mean, _Mean]
    std: tuple[_Deviation, _Deviation, _Deviation]


class _Base(Schema, others=None):
    identity: ShortText
    fingerprint: ShortText


class _Crop(Schema, others=None):
    landmarks: tuple[_Point, _Point, _Point, _Point, _Point]


class _Baseline(Schema, others=None):
    age: Annotated[float, Limits(0, MAX_AGE)]
    female: bool


class _CropBox(Schema, others=None):
    # As fractions of an image: its part that is used, which may extend beyond it.
    left: Annotated[float, Limits(-2, 2)]
    top: Annotated[float, Limits(-2, 2)]
    side: Annotated[float, Limits(0.1, 5)]


def _is_shallow(value: Any, depth: int = 4) -> bool:
    """Return whether lists and objects are nested at most ``depth`` deep in a value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth >= 0 and all(_is_shallow(one, depth - 1) for one in inner)


class _Training(Schema, others=Annotated[Any, Check("nested at most 4 deep", _is_shallow)]):
    baseline: _Baseline = ABSENT
    seed: Annotated[int, Limits(-(2**63), 2**64)] = ABSENT
    split: ShortText | None = ABSENT
    terms: str | None = ABSENT
    trims: dict[str, _CropBox] | None = ABSENT


class _Build(Schema, others=Annotated[float, Limits(-1e9, 1e9)] | ShortText):
    image_size: _Side = ABSENT
    freeze: bool = ABSENT


@dataclass(frozen=True)
class CheckpointInfo(Schema, others=None):
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
        views: over how many views of a face the outputs are averaged: 2, the crop and its mirror image, as in files
            without this entry, or 1, the crop alone.
    """

    model: Annotated[ShortText, _MODEL]
    distribution: ShortText
    version: ShortText
    heads: Annotated[dict[str, Any], _Heads]
    input_spec: Annotated[dict[str, Any], _InputSpec]
    base: Annotated[dict[str, str], _Base] | None = None
    training: Annotated[dict[str, Any], _Training] = field(default_factory=dict)
    crop: Annotated[dict[str, Any], _Crop] | None = None
    calibration: Annotated[dict[str, Any], Calibration] | None = None
    build: Annotated[dict[str, Any], _Build] = field(default_factory=dict)
    views: Annotated[int, Limits(1, 2)] = 2


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
        _check_header(path)
        with safe_open(path, framework=framework) as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {shorten(str(error))}") from error


def _check_header(path: Path) -> None:
    """Check the size of the header, which is the first number in the file; safetensors finds any other damage."""
    with path.open("rb") as file:
        start = file.read(8)
    if len(start) == 8 and _MAX_HEADER_BYTES < struct.unpack("<Q", start)[0] <= path.stat().st_size:
        raise CheckpointError(f"{path} is not a checkpoint: it has more than {_MAX_HEADER_BYTES // 10**6} MB of header")


def format_info(info: CheckpointInfo) -> dict[str, str]:
    """Return metadata in the form that is stored in safetensors and ONNX files."""
    return {METADATA_KEY: json.dumps({"format": FORMAT, **asdict(info)})}


def parse_info(path: Path, texts: dict[str, str] | None) -> CheckpointInfo:
    """Parse the output of :func:`format_info`.

    Raises:
        CheckpointError: the file was not written by agegen, in another format, or its metadata was changed to
            something that agegen does not write; the message names the entry.
    """
    try:
        metadata = json.loads((texts or {}).get(METADATA_KEY, "null"))
        if not isinstance(metadata, dict):
            raise CheckpointError(f"{path} was not written by agegen: it lacks the metadata '{METADATA_KEY}'")
        if (found := metadata.pop("format", None)) != FORMAT:
            raise CheckpointError(
                f"{path} has the format {shorten(str(found))}, but this agegen reads {FORMAT}. Upgrade agegen."
            )
        if problem := find_mismatch(metadata, CheckpointInfo):
            raise CheckpointError(f"{path} has invalid metadata: {problem}")
    except (ValueError, RecursionError) as error:  # the latter for deeply nested lists
        raise CheckpointError(f"{path} has invalid metadata: {shorten(str(error))}") from error
    return CheckpointInfo(**metadata)
