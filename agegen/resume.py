"""Taking up a training again: its options come from the run folder, and others that contradict them are refused."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from agegen.errors import AgegenError, CheckpointError
from agegen.runs import open_run
from agegen.train_setup import TrainConfig

# These change nothing of the result, or only where it comes about.
_FREE = ("workers", "cache_dir", "save_every", "resume", "out")
_PATHS = ("split_file",)


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
        options["data"] = record["data"]["source"]
        known = {field.name for field in fields(TrainConfig)}
        kept = {name: value for name, value in options.items() if name in known and name not in _FREE}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder.path / 'run.json'} is damaged: it lacks {error}") from error
    if clashes := [name for name, value in given.items() if name in kept and _clashes(name, value, kept[name])]:
        said = ", ".join(f"--{name.replace('_', '-')} {given[name]} (the run has {kept[name]})" for name in clashes)
        raise AgegenError(f"{folder.path} can't go on with other options: {said}; leave them out, or train anew")
    kept |= {name: Path(kept[name]) for name in _PATHS if kept.get(name)}
    kept |= {name: given[name] for name in _FREE if given.get(name) is not None}
    return TrainConfig(**(kept | {"resume": folder.path}))


def _clashes(name: str, given: Any, kept: Any) -> bool:
    if given is None:
        return False
    if name == "data" and given != "demo":
        return Path(str(given)).resolve() != Path(str(kept))
    return str(given) != str(kept)
