"""What is compared: runs that are named, studies of seeds, weights that ship, or the newest run of each model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agegen.errors import AgegenError
from agegen.evaluate.study import is_study, list_seed_runs
from agegen.model.metadata import read_info
from agegen.model.weights import fetch_hub_run, find_weights, is_hub_run, parse_weights_name
from agegen.runs import RunFolder, is_standalone_file, list_finished_runs, open_run


@dataclass(frozen=True)
class ComparedRun:
    """One training: its run, or its weights alone (``run`` None), such as ship or lie on the Hub."""

    checkpoint: Path
    run: RunFolder | None = None

    @property
    def place(self) -> Path:
        """Where it lies, as ``agegen eval`` takes it."""
        return self.checkpoint if self.run is None else self.run.path


@dataclass(frozen=True)
class ComparedModel:
    """What is compared: one training, or all trainings of a study of seeds; ``given`` is what was named."""

    given: str
    trainings: tuple[ComparedRun, ...]

    @property
    def short_name(self) -> str:
        """The backbone of a run; of weights alone what they were called by."""
        first = self.trainings[0]
        return self.given.removeprefix("hf://") if first.run is None else str(first.run.read()["model"])

    @property
    def long_name(self) -> str:
        """The folder of a run."""
        return self.short_name if self.trainings[0].run is None else Path(self.given).resolve().name


def choose_models(given: Sequence[str]) -> list[ComparedModel]:
    """Return what is named, or the newest finished run of each model under ``./runs``.

    Args:
        given: run folders, studies of seeds, ``hf://OWNER/NAME[@REVISION]``, files of weights, or ``NAME[/WEIGHTS]`` of
            weights that ship.

    Raises:
        AgegenError: there are fewer than two, or one isn't finished.
    """
    if given:
        models = [_open(name) for name in given]
    else:
        newest = {str(run.read()["model"]): run for run in list_finished_runs()}
        models = [ComparedModel(str(newest[name].path), (_take_run(newest[name]),)) for name in sorted(newest)]
    places = {model.trainings[0].place.resolve() for model in models}
    if len(places) < max(2, len(models)):
        raise AgegenError(
            f"a comparison needs at least two different finished runs, not {len(models)}; name them, or weights that "
            "ship (with --data), or train another model, e.g. `agegen train --model vgg16`"
        )
    return models


def name_models(models: Sequence[ComparedModel]) -> tuple[str, ...]:
    """Return a short name for each: its backbone where that tells them apart, else its folder's."""
    for names in ([model.short_name for model in models], [model.long_name for model in models]):
        if len(set(names)) == len(names):
            return tuple(names)
    return tuple(model.given for model in models)


def _open(given: str) -> ComparedModel:
    if is_hub_run(given):
        return ComparedModel(given, (ComparedRun(fetch_hub_run(given)),))
    path = Path(given)
    if is_study(path):
        return ComparedModel(given, _open_seeds(path))
    if shipped := parse_weights_name(given):
        return ComparedModel(given, (ComparedRun(find_weights(*shipped)),))
    if is_standalone_file(path):
        read_info(path)
        return ComparedModel(given, (ComparedRun(path),))
    return ComparedModel(given, (_take_run(open_run(path)),))


def _take_run(run: RunFolder) -> ComparedRun:
    if not run.read().get("finished"):
        raise AgegenError(f"{run.path} is not finished; there is nothing to compare yet")
    return ComparedRun(run.checkpoint, run)


def _open_seeds(path: Path) -> tuple[ComparedRun, ...]:
    """Return the trainings of a study of seeds.

    Raises:
        AgegenError: it isn't whole, or is one of folds, whose trainings are tested on different faces.
    """
    folders = list_seed_runs(path)
    if not folders:
        raise AgegenError(
            f"{path} holds no trainings with several seeds: folds are tested each on other faces, see "
            f"`agegen eval {path}`"
        )
    return tuple(_take_run(open_run(folder)) for folder in folders)
