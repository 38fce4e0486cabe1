"""Checkpoint metadata, which can be read without torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from agegen.data.labels import MAX_AGE
from agegen.errors import CheckpointError, shorten
from agegen.plugins import is_plain_argument

# Increased when an older agegen would misread a new checkpoint.
FORMAT = 1
METADATA_KEY = "agegen"
# The header of a safetensors file describes each tensor in about 100 bytes. The largest networks of timm have 3,000
# tensors; a header of 80,000, or of much metadata, would only take time and memory.
_MAX_HEADER_BYTES = 8_000_000


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
    except (ValueError, RecursionError) as error:  # the latter for deeply nested lists
        raise CheckpointError(f"{path} has invalid metadata: {shorten(str(error))}") from error
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path} was not written by agegen: it lacks the metadata '{METADATA_KEY}'")
    if (found := metadata.pop("format", None)) != FORMAT:
        raise CheckpointError(
            f"{path} has the format {shorten(str(found))}, but this agegen reads {FORMAT}. Upgrade agegen."
        )
    if problem := find_problem("", metadata, _METADATA):
        raise CheckpointError(f"{path} has invalid metadata: {problem}")
    return CheckpointInfo(**metadata)


class Rule(NamedTuple):
    """The values that an entry of the metadata may have; ``expected`` describes them in errors."""

    expected: str
    accepts: Callable[[Any], bool]


class Entries(NamedTuple):
    """An object in the metadata: the schemas of its entries.

    Entries named in ``optional`` may be missing, those in ``nullable`` may be null. ``further`` is the schema of
    entries with any other name; None forbids them.
    """

    schemas: Mapping[str, Schema]
    optional: tuple[str, ...] = ()
    nullable: tuple[str, ...] = ()
    further: Schema | None = None


Schema = Rule | Entries


def find_problem(name: str, value: Any, schema: Schema) -> str | None:
    """Return how an entry of the metadata differs from its schema, in one line; None if it does not.

    ``name`` is that of the entry: ``heads.hidden``; "" for all of the metadata.
    """
    if isinstance(schema, Rule):
        return None if schema.accepts(value) else f"'{name}' must be {schema.expected}, not {shorten(repr(value))}"
    if not isinstance(value, dict):
        return f"'{name}' must be an object, not {shorten(repr(value))}"
    prefix = f"{name}." if name else ""
    if missing := schema.schemas.keys() - schema.optional - value.keys():
        return f"'{prefix}{min(missing)}' is missing"
    for key, content in value.items():
        inner = schema.schemas.get(key, schema.further)
        full = shorten(prefix + key)
        if inner is None:
            return f"'{full}' is unknown"
        accepted = content is None and key in schema.nullable
        if not accepted and (problem := find_problem(full, content, inner)):
            return problem
    return None


def _allow_number(low: float, high: float) -> Rule:
    return Rule(f"a number from {low:g} to {high:g}", lambda value: _is_number(value, low, high))


def _allow_whole(low: int, high: int) -> Rule:
    return Rule(
        f"a whole number from {low} to {high}", lambda value: isinstance(value, int) and _is_number(value, low, high)
    )


def _allow_text(length: int) -> Rule:
    return Rule(
        f"a printable text of at most {length} characters",
        lambda value: isinstance(value, str) and len(value) <= length and value.isprintable(),
    )


def _allow_rows(rows: int, *columns: Rule) -> Rule:
    """Allow a list of at most ``rows`` lists, whose numbers follow the rules of the ``columns``."""
    expected = ", ".join(rule.expected for rule in columns)

    def accepts(value: Any) -> bool:
        return isinstance(value, list | tuple) and len(value) <= rows and all(_is_row(row, columns) for row in value)

    return Rule(f"a list of at most {rows} lists with {len(columns)} numbers: {expected}", accepts)


def _allow_numbers(count: int, low: float, high: float) -> Rule:
    columns = (_allow_number(low, high),) * count
    return Rule(f"a list of {count} numbers from {low:g} to {high:g}", lambda value: _is_row(value, columns))


def _is_row(value: Any, columns: tuple[Rule, ...]) -> bool:
    """Return whether a value is a list (or tuple) of one number per rule."""
    return (
        isinstance(value, list | tuple)
        and len(value) == len(columns)
        and all(rule.accepts(one) for rule, one in zip(columns, value, strict=True))
    )


def _is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _is_shallow(value: Any, depth: int) -> bool:
    """Return whether lists and objects are nested at most ``depth`` deep in a value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth >= 0 and all(_is_shallow(one, depth - 1) for one in inner)


# The widest layer of a head; the sizes of networks are bounded before they are built.
_WIDTH = _allow_whole(1, 65_536)
# The side of an input in pixels. The largest of timm is 1024.
_SIDE = _allow_whole(1, 4096)
_FRACTION = _allow_number(0, 1)
_BOOLEAN = Rule("true or false", lambda value: isinstance(value, bool))
_TEXT = _allow_text(200)
_SHALLOW = Rule("nested at most 4 deep", lambda value: _is_shallow(value, 4))
_SCALAR = Rule("a number or a short text", lambda value: _TEXT.accepts(value) or _is_number(value, -1e9, 1e9))
_MODEL = Rule(
    "NAME or NAME:ARGUMENT, where the argument is not a path or an address",
    lambda value: _TEXT.accepts(value) and is_plain_argument(value.partition(":")[2]),
)
_HEADS = {
    "hidden": _WIDTH,
    "dropout": _FRACTION,
    "feature_dropout": _FRACTION,
    "standardize": _BOOLEAN,
    "age_hidden": _WIDTH,
    "gender_hidden": _WIDTH,
}
# As fractions of an image: its part that is used, which may extend beyond it.
_CROP_BOX = Entries({"left": _allow_number(-2, 2), "top": _allow_number(-2, 2), "side": _allow_number(0.1, 5)})
_TRAINING: dict[str, Schema] = {
    "baseline": Entries({"age": _allow_number(0, MAX_AGE), "female": _BOOLEAN}),
    "seed": _allow_whole(-(2**63), 2**64),
    "split": _TEXT,
    "terms": Rule("a text", lambda value: isinstance(value, str)),
    "trims": Entries({}, further=_CROP_BOX),
}
_AGE = _allow_number(0, 200)
_SCALE = _allow_number(0, 1000)
_CONFIDENCE = _allow_number(0.5, 1)
CALIBRATION = Entries(
    {
        "interval_scale": _SCALE,
        "coverage": _FRACTION,
        "min_confidence": _CONFIDENCE,
        "faces": _allow_whole(0, 2**53),
        "basis": _TEXT,
        "scales": _allow_rows(1000, _AGE, _SCALE),
        "doubtful": _allow_rows(1000, _AGE, _AGE, _CONFIDENCE),
        "knows_age": _BOOLEAN,
        "gender_basis": _TEXT,
    },
    optional=("basis", "scales", "doubtful", "knows_age", "gender_basis"),
)
_ENTRIES: dict[str, Schema] = {
    "model": _MODEL,
    "distribution": _TEXT,
    "version": _TEXT,
    "heads": Entries(_HEADS, optional=tuple(_HEADS), nullable=("age_hidden", "gender_hidden")),
    "input_spec": Entries(
        {"size": _SIDE, "mean": _allow_numbers(3, -1000, 1000), "std": _allow_numbers(3, 1e-6, 1000)}
    ),
    "base": Entries({"identity": _TEXT, "fingerprint": _TEXT}),
    "training": Entries(_TRAINING, optional=tuple(_TRAINING), nullable=("split", "terms", "trims"), further=_SHALLOW),
    # Tight crops have some landmarks outside.
    "crop": Entries({"landmarks": _allow_rows(5, *[_allow_number(-2, 3)] * 2)}),
    "calibration": CALIBRATION,
    "build": Entries({"image_size": _SIDE, "freeze": _BOOLEAN}, ("image_size", "freeze"), further=_SCALAR),
}
_METADATA = Entries(
    _ENTRIES,
    optional=("base", "training", "crop", "calibration", "build"),
    nullable=("base", "crop", "calibration"),
)
