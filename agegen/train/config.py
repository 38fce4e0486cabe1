"""The options of a training and of a study: given on the command line, or read from the run that is resumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from agegen.errors import AgegenError, CheckpointError
from agegen.files import find_mismatch
from agegen.options import (
    COMPUTE,
    DATA,
    MODEL,
    OUTPUT,
    STUDY,
    TRAINING,
    AgeColumnOption,
    CacheDirOption,
    CropDetectorOption,
    DeviceOption,
    GenderCodesOption,
    PrecisionOption,
    ProtocolOption,
    from_plain,
    select_fields,
)
from agegen.runs import list_sources, open_run


@dataclass(frozen=True)
class TrainConfig:
    """Options of ``agegen train``; None stands for the backbone's own default.

    Attributes:
        data: one dataset or more.
        save_every: seconds after which the state is saved again.
        resume: the folder of an unfinished run, to which the other options belong; see :func:`read_config`.
        soft_labels: files with estimates of teachers.
        distributions: whether ``predictions.parquet`` contains P(age).
    """

    model: Annotated[
        str,
        typer.Option(
            metavar="NAME[:ARGUMENT]",
            help="Backbone to train; see `agegen models`. timm:NAME is any backbone of timm.",
            rich_help_panel=MODEL,
        ),
    ]
    data: Annotated[
        tuple[str, ...],
        typer.Option(
            metavar="PATH",
            help="Dataset: a folder in a known layout, a table (CSV, TSV, JSON Lines, Parquet), Parquet at an address "
            "(hf://datasets/OWNER/NAME/PATH.parquet, s3://…) or 'demo' (repeatable; PATH::0.5 draws its faces half as "
            "often). Default: $AGEGEN_DATA, else ./data/utkface.",
            rich_help_panel=DATA,
        ),
    ]
    out: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Run folder. Default: runs/<model>-<time>.", rich_help_panel=OUTPUT),
    ] = field(default=None, metadata={"resume": "never", "study": "free", "recorded": False})
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Passes over the training split.", show_default="model's", rich_help_panel=TRAINING),
    ] = None
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="Images per step.", show_default="model's", rich_help_panel=TRAINING)
    ] = None
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate.", show_default="model's", rich_help_panel=TRAINING)
    ] = None
    age_balance: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="How strongly an epoch oversamples rare ages.",
            show_default="model's",
            rich_help_panel=TRAINING,
        ),
    ] = None
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the split, the weights and the order.", rich_help_panel=TRAINING)
    ] = 0
    device: DeviceOption = field(default="auto", metadata={"study": "free"})
    precision: PrecisionOption = "auto"
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="Processes that load and augment images.", show_default="by cores", rich_help_panel=COMPUTE
        ),
    ] = field(default=None, metadata={"resume": "free", "study": "free", "recorded": False})
    split_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Use the split.csv of another run.", rich_help_panel=DATA),
    ] = None
    cache_dir: CacheDirOption = field(default=None, metadata={"resume": "free", "study": "free", "recorded": False})
    save_every: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Interval between saves.", rich_help_panel=COMPUTE)
    ] = field(default=60.0, metadata={"resume": "free", "study": "free", "recorded": False})
    age_column: AgeColumnOption = None
    gender_codes: GenderCodesOption = None
    detector: CropDetectorOption = None
    init: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|MODEL",
            help="Fine-tune from a run or bundled weights; a third of the default rate and epochs.",
            rich_help_panel=MODEL,
        ),
    ] = None
    image_size: Annotated[
        int | None,
        typer.Option(
            min=16,
            metavar="PIXELS",
            help="Input size, for backbones that accept any (timm:NAME).",
            rich_help_panel=MODEL,
        ),
    ] = None
    freeze: Annotated[
        bool | None,
        typer.Option(
            "--freeze/--no-freeze",
            help="Train only the heads, on cached features of the backbone.",
            rich_help_panel=MODEL,
        ),
    ] = None
    pretrained: Annotated[
        bool,
        typer.Option(
            "--pretrained/--no-pretrained",
            help="Start from the backbone's pretrained weights.",
            rich_help_panel=MODEL,
        ),
    ] = True
    protocol: ProtocolOption = None
    soft_labels: Annotated[
        tuple[str, ...],
        typer.Option(
            metavar="FILE",
            help="Distill from teachers: out-of-fold estimates that --folds writes (repeatable).",
            rich_help_panel=TRAINING,
        ),
    ] = ()
    soft_weight: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Weight of the teachers against the labels.",
            show_default="model's",
            rich_help_panel=TRAINING,
        ),
    ] = None
    distributions: bool = field(default=False, metadata={"recorded": False})
    compile: Annotated[
        bool,
        typer.Option("--compile", help="Compile the network with torch.compile.", rich_help_panel=COMPUTE),
    ] = field(default=False, metadata={"resume": "free", "recorded": False})
    augment: Annotated[
        Literal["auto", "loaders", "device"],
        typer.Option(
            help="Where images are augmented; auto: on the GPU if all of them fit in its memory.",
            rich_help_panel=COMPUTE,
        ),
    ] = "auto"
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Resume an interrupted run with its own options.", rich_help_panel=STUDY),
    ] = field(default=None, metadata={"resume": "never", "study": "free", "recorded": False})


@dataclass(frozen=True)
class StudyConfig:
    """Options of ``agegen train`` with ``--folds`` or ``--seeds``.

    ``train`` holds what all runs have in common; its ``out`` is the study's folder. ``fold`` selects one run of a
    cross-validation; None means all unfinished ones.
    """

    train: TrainConfig
    folds: Annotated[
        int | None,
        typer.Option(min=2, metavar="K", help="Cross-validate: train once for each of K folds.", rich_help_panel=STUDY),
    ] = None
    fold: Annotated[
        int | None, typer.Option(min=1, metavar="I", help="Train only fold I (with --folds).", rich_help_panel=STUDY)
    ] = None
    seeds: Annotated[
        int | None,
        typer.Option(
            min=2, metavar="N", help="Train N times on one split with different seeds.", rich_help_panel=STUDY
        ),
    ] = None


def read_config(run: Path, given: dict[str, Any]) -> TrainConfig:
    """Return the options with which a run is resumed: its own, and what may differ as given now.

    Args:
        run: the folder of an unfinished run.
        given: the options given now, by their names in :class:`TrainConfig`.

    Raises:
        AgegenError: the run is finished, is damaged, or an option contradicts it.
    """
    folder = open_run(run)
    record = folder.read()
    if record.get("finished"):
        raise AgegenError(f"{folder.path} is finished; there is nothing to resume")
    options = read_options(folder.path / "run.json", {**record["options"], "data": list(list_sources(record))})
    never = select_fields(TrainConfig, resume="never")
    kept = {name: value for name, value in options.items() if name not in never}
    reject_changes(folder.path, kept, given, (*never, *select_fields(TrainConfig, resume="free")))
    free = {name: given[name] for name in select_fields(TrainConfig, resume="free") if name in given}
    return TrainConfig(**(kept | free | {"resume": folder.path}))


def read_options(path: Path, content: Any) -> dict[str, Any]:
    """Return the options of a training as :class:`TrainConfig` takes them, from the part ``options`` of a JSON file.

    Raises:
        CheckpointError: one has the wrong type or is out of range.
    """
    if found := find_mismatch(content, TrainConfig, "options"):
        raise CheckpointError(f"{path} is damaged: {found}")
    return from_plain(TrainConfig, content)


def reject_changes(path: Path, kept: dict[str, Any], given: dict[str, Any], free: Sequence[str]) -> None:
    """Check that the options given now are those of the run or study that is resumed, except the ``free`` ones.

    Raises:
        AgegenError: one is not.
    """
    changed = [
        name
        for name, value in given.items()
        if name not in free and _phrase(name, value) != _phrase(name, kept.get(name))
    ]
    if changed:
        texts = (
            f"--{name.replace('_', '-')} {_phrase(name, given[name])} (the run has {_phrase(name, kept.get(name))})"
            for name in changed
        )
        raise AgegenError(
            f"cannot resume {path} with other options: {', '.join(texts)}. Omit them, or start a new run."
        )


def resolve_paths(options: dict[str, Any]) -> dict[str, Any]:
    """Return options, some or all of :class:`TrainConfig`, with absolute paths: a run is resumed from any folder."""
    from agegen.data.loading import make_absolute

    resolved = dict(options)
    for name in ("split_file", "cache_dir"):
        if options.get(name) is not None:
            resolved[name] = Path(options[name]).resolve()
    # --init also takes names of weights and addresses on the Hub.
    if options.get("init") and Path(options["init"]).exists():
        resolved["init"] = str(Path(options["init"]).resolve())
    if options.get("soft_labels"):
        resolved["soft_labels"] = tuple(str(Path(path).resolve()) for path in options["soft_labels"])
    if options.get("data"):
        resolved["data"] = make_absolute(options["data"])
    return resolved


def _phrase(name: str, value: Any) -> str:
    value = resolve_paths({name: value})[name]
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
