"""The options of a training: given anew, or read from the run that goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from agegen.backbone import LossSettings, TrainingDefaults
from agegen.data.remote import is_remote
from agegen.errors import AgegenError, CheckpointError
from agegen.runs import list_sources, open_run

# These change nothing of the result, or only where it comes about.
_FREE = ("workers", "cache_dir", "save_every", "resume", "out", "compile")
_PATHS = ("split_file",)


@dataclass(frozen=True)
class TrainConfig:
    """Options of ``agegen train``; None stands for the backbone's own default; ``data`` names one data set or more.

    ``save_every``: seconds after which the state is saved again. ``resume``: the folder of an
    unfinished run, to which the other options belong; see :func:`agegen.train.config.read_config`.
    ``image_size`` (pixels) and ``freeze`` go to backbones that take them; ``pretrained`` says whether weights that a
    backbone brings are wanted. ``soft_labels``: files of teachers' estimates. ``distributions``: whether
    ``predictions.parquet`` holds P(age) too.
    """

    model: str
    data: tuple[str, ...]
    out: Path | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    age_balance: float | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    workers: int | None = None
    split_file: Path | None = None
    cache_dir: Path | None = None
    save_every: float = 60.0
    age_column: str | None = None
    gender_codes: str | None = None
    detector: str | None = None
    init: str | None = None
    image_size: int | None = None
    freeze: bool | None = None
    pretrained: bool = True
    protocol: str | None = None
    soft_labels: tuple[str, ...] = ()
    soft_weight: float | None = None
    distributions: bool = False
    compile: bool = False
    augment: str = "auto"
    resume: Path | None = None


@dataclass(frozen=True)
class FitSettings:
    """How to train; see :class:`agegen.backbone.TrainingDefaults` for the meaning of each."""

    epochs: int
    lr: float
    weight_decay: float
    warmup: float = TrainingDefaults.warmup
    ema_decay: float = TrainingDefaults.ema_decay
    layer_decay: float | None = None
    loss: LossSettings = TrainingDefaults.loss


def read_config(run: Path, given: dict[str, Any]) -> TrainConfig:
    """Return the options with which a run goes on.

    Args:
        run: the folder of an unfinished run.
        given: options of this call by their names in :class:`TrainConfig`; None where nothing was given.

    Raises:
        AgegenError: the run is finished, can't be used, or an option contradicts it.
    """
    folder = open_run(run)
    record = folder.read()
    if record.get("finished"):
        raise AgegenError(f"{folder.path} is finished; there is nothing to go on with")
    try:
        options = dict(record["options"])
        options["data"] = list_sources(record)
        options["soft_labels"] = tuple(options.get("soft_labels", ()))
        known = {field.name for field in fields(TrainConfig)}
        kept = {name: value for name, value in options.items() if name in known and name not in _FREE}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder.path / 'run.json'} is damaged: it lacks {error}") from error
    if clashes := [name for name, value in given.items() if name in kept and _clashes(name, value, kept[name])]:
        said = ", ".join(
            f"--{name.replace('_', '-')} {_phrase(given[name])} (the run has {_phrase(kept[name])})" for name in clashes
        )
        raise AgegenError(f"{folder.path} can't go on with other options: {said}; leave them out, or train anew")
    kept |= {name: Path(kept[name]) for name in _PATHS if kept.get(name)}
    kept |= {name: given[name] for name in _FREE if given.get(name) is not None}
    return TrainConfig(**(kept | {"resume": folder.path}))


def resolve_sources(data: Sequence[str]) -> tuple[str, ...]:
    """Return data sets by absolute paths, weights kept; ``demo`` and addresses are no paths."""
    named = (one.partition("::") for one in data)
    return tuple(
        (path if path == "demo" or is_remote(path) else str(Path(path).resolve())) + mark + weight
        for path, mark, weight in named
    )


def _phrase(value: Any) -> str:
    return " ".join(value) if isinstance(value, list | tuple) else str(value)


def _clashes(name: str, given: Any, kept: Any) -> bool:
    if given is None:
        return False
    if name == "data":
        return resolve_sources(given) != tuple(kept)
    return str(given) != str(kept)
