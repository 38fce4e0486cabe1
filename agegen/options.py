"""Command-line options as fields of frozen dataclasses: each option has one definition.

A field carries its type, its help and its panel; :func:`with_options` makes a command's signature from the fields. What
else is known of an option is metadata of the field:

- ``resume="free"``: may differ when a run is resumed, since it does not change the result
- ``resume="never"``: not taken over from the run that is resumed
- ``study="free"``: may differ between the runs of a study (``--folds``, ``--seeds``)
- ``recorded=False``: not part of the command that a run folder records
- ``decides_rows=True``: changes the rows of a prediction
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import typer
from typer.models import ParameterInfo

T = TypeVar("T")

# Panels of `--help`, by the question that their options answer.
FACES, OUTPUT, VIDEO, SCALE = "Faces", "Output", "Video", "Scale"
MODEL, DATA, TRAINING, STUDY, COMPUTE = "Model", "Data", "Training", "Resume and repeat", "Hardware and cache"

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16"]
InferencePrecision = Literal["auto", "fp32", "bf16", "int8"]
EngineName = Literal["auto", "onnx", "torch"]
SplitName = Literal["test", "val", "train", "all"]
ProtocolName = Literal["utkface-21-60", "utkface-full"]


class Int8Part(StrEnum):
    """A part of a model that can stay in float32 when the rest is quantized.

    The first layer, which sees the pixels, and the heads lose the most accuracy in most published int8 networks.
    """

    FIRST = "first"
    HEADS = "heads"


# Of the option of `agegen` itself and of its commands.
OFFLINE_HELP = "Never access the network; fail if a required file is not cached."

JsonOption = Annotated[
    str | None, typer.Option("--json", metavar="FILE|-", help="Write JSON; - is stdout.", rich_help_panel=OUTPUT)
]
ReportOption = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE.html", help="Write one self-contained page.", rich_help_panel=OUTPUT),
]
OfflineOption = Annotated[
    bool,
    typer.Option("--offline", help=OFFLINE_HELP, rich_help_panel=COMPUTE),
]
FinishedRunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A finished run.")]
DeviceOption = Annotated[
    Device, typer.Option(help="Device; auto uses a CUDA GPU if there is one.", rich_help_panel=COMPUTE)
]
PrecisionOption = Annotated[
    Precision,
    typer.Option(help="Precision of matrix products; auto uses bf16 if the hardware has it.", rich_help_panel=COMPUTE),
]
InferencePrecisionOption = Annotated[
    InferencePrecision,
    typer.Option(
        help="auto: the model's int8 file if it has one; fp32, int8: its ONNX file in this precision; bf16: torch.",
        rich_help_panel=COMPUTE,
    ),
]
CacheDirOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where features of frozen backbones are cached. Default: the user's cache folder.",
        rich_help_panel=COMPUTE,
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Which of a model's bundled weights; see `agegen models`.",
        show_default="default",
        rich_help_panel=MODEL,
    ),
]
OtherDataOption = Annotated[
    tuple[str, ...],
    typer.Option(
        metavar="PATH", help="Other data, as for train (repeatable). Default: the run's.", rich_help_panel=DATA
    ),
]
AgeColumnOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Column with the age, if a table has several.", rich_help_panel=DATA),
]
GenderCodesOption = Annotated[
    str | None,
    typer.Option(
        metavar="WORD,WORD",
        help="What 0 and 1, or 1 and 2, stand for. Default: male,female for 0 and 1.",
        rich_help_panel=DATA,
    ),
]
ProtocolOption = Annotated[
    ProtocolName | None,
    typer.Option(
        help="Ages and split fractions of published comparisons (utkface-21-60: CORAL, MWR).", rich_help_panel=DATA
    ),
]


def complete_detectors(incomplete: str) -> list[str]:
    """Return the detectors whose name begins with ``incomplete``, for the shell."""
    return [name for name in ("auto", *_list_detectors(), "none") if name.startswith(incomplete)]


def check_detector(name: str | None) -> str | None:
    """Return a detector's name.

    Raises:
        typer.BadParameter: no installed detector has this name.
    """
    known = ("auto", *_list_detectors(), "none")
    if name is None or name in known:
        return name
    raise typer.BadParameter(f"'{name}' is not one of {', '.join(repr(one) for one in known)}.")


def _list_detectors() -> list[str]:
    # Not by importing faces/detection.py, which takes NumPy and OpenCV along.
    from importlib.metadata import entry_points

    return list(dict.fromkeys(entry.name for entry in entry_points(group="agegen.detectors")))


CropDetectorOption = Annotated[
    str | None,
    typer.Option(
        metavar="mtcnn|yunet",
        callback=check_detector,
        autocompletion=complete_detectors,
        help="The data are photos: detect and align the largest face of each. Default: they are aligned crops.",
        rich_help_panel=DATA,
    ),
]


@dataclass(frozen=True)
class ReadOptions:
    """How labels are read.

    Attributes:
        age_column: which column holds the age, if a table has several.
        gender_codes: what 0 and 1, or 1 and 2, stand for, e.g. ``male,female``; None for UTKFace's.
    """

    age_column: AgeColumnOption = None
    gender_codes: GenderCodesOption = None

    def fill_from(self, record: dict[str, Any]) -> ReadOptions:
        """Return these options, completed by those of a run's record (``run.json``)."""
        kept = record["options"]
        return ReadOptions(self.age_column or kept.get("age_column"), self.gender_codes or kept.get("gender_codes"))


DEFAULT_READ_OPTIONS = ReadOptions()


def with_options(config: type[T], partial: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the fields of a config dataclass as its options.

    The decorated function takes the config as its first argument; its other, keyword-only parameters stay options of
    the command itself. Fields whose type is a dataclass contribute their own fields; fields without Typer's annotation
    are no options.

    Args:
        config: the dataclass.
        partial: hand over a dict of the options that were given, by the fields' names, instead of a config: for
            commands that combine them with those of a run. No field is required then.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        _, *own = inspect.signature(function).parameters.values()
        hints = get_type_hints(function, include_extras=True)
        parameters = [make_parameter(field, hint, partial) for field, hint in list_options(config)]
        parameters += [parameter.replace(annotation=hints[parameter.name]) for parameter in own]
        names = {parameter.name for parameter in own}

        @wraps(function)
        def command(ctx: typer.Context, **values: Any) -> None:
            # Old releases of typer call an argument that is left out given, with the value None.
            known = {name: value for name, value in values.items() if name not in names and value is not None}
            given = {name: value for name, value in known.items() if _is_given(ctx, name)}
            settings = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
            chosen = settings if partial else build_config(config, settings)
            function(chosen, **{name: values[name] for name in names})

        context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        command.__signature__ = inspect.Signature([context, *parameters])  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in (context, *parameters)}
        return command

    return decorate


def list_options(config: type[Any]) -> Iterator[tuple[Field[Any], Any]]:
    """Yield the fields of a dataclass that are options, with their types; a nested dataclass yields its own fields."""
    hints = get_type_hints(config, include_extras=True)
    for field in fields(config):
        if is_dataclass(hint := hints[field.name]):
            yield from list_options(hint)  # type: ignore[arg-type]
        elif any(isinstance(extra, ParameterInfo) for extra in get_args(hint)[1:]):
            yield field, hint


def make_parameter(field: Field[Any], hint: Any, partial: bool = False) -> inspect.Parameter:
    """Return a field as a command's parameter; a tuple of any length becomes an option that can be repeated."""
    kind, *extras = get_args(hint)
    default = field.default if field.default_factory is MISSING else field.default_factory()
    repeatable = get_origin(kind) is tuple
    required = default is MISSING and not partial
    if repeatable:
        kind = list[get_args(kind)[0]]  # type: ignore[misc]
    if not required and (repeatable or default is MISSING):
        kind, default = kind | None, None
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else default,
        annotation=Annotated[kind, *extras],
    )


def build_config(config: type[T], given: dict[str, Any]) -> T:
    """Return a config with the options that were given, nested dataclasses filled; the other fields have defaults."""
    hints = get_type_hints(config)
    values = {}
    for field in fields(config):  # type: ignore[arg-type]
        kind = hints[field.name]
        if is_dataclass(kind):
            nested = {inner.name: given[inner.name] for inner in fields(kind) if inner.name in given}
            if nested:
                values[field.name] = kind(**nested)  # type: ignore[operator]
        elif field.name in given:
            values[field.name] = given[field.name]
    return config(**values)


def select_fields(config: type[Any], **metadata: Any) -> tuple[str, ...]:
    """Return the names of the fields whose metadata has these values."""
    return tuple(
        field.name
        for field in fields(config)
        if all(field.metadata.get(name) == value for name, value in metadata.items())
    )


def to_plain(config: Any) -> dict[str, Any]:
    """Return a config's fields as JSON takes them: paths as text."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}


def from_plain(config: type[Any], content: dict[str, Any]) -> dict[str, Any]:
    """Return the values of :func:`to_plain` in the fields' types; names that the dataclass lacks are left out."""
    hints = get_type_hints(config)
    return {name: _restore(hints[name], value) for name, value in content.items() if name in hints}


def _restore(kind: Any, value: Any) -> Any:
    if value is not None and (kind is Path or Path in get_args(kind)):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


def _is_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")
