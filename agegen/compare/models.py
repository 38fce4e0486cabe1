"""The models of a comparison: runs, studies of seeds, bundled weights, or the newest run of each model."""

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
    """One training: its run folder, or only its weights (``run`` None), such as bundled ones or those on the Hub."""

    checkpoint: Path
    run: RunFolder | None = None

    @property
    def place(self) -> Path:
        """The path that ``agegen eval`` takes: the run folder or the checkpoint."""
        return self.checkpoint if self.run is None else self.run.path


@dataclass(frozen=True)
class ComparedModel:
    """One model of a comparison, as the user named it (``given``): one training, or those of a study of seeds."""

    given: str
    trainings: tuple[ComparedRun, ...]

    @property
    def short_name(self) -> str:
        """The backbone of a run; for weights without a run, the name that the user gave."""
        first = self.trainings[0]
        return self.given.removeprefix("hf://") if first.run is None else str(first.run.read()["model"])

    @property
    def long_name(self) -> str:
        """The name of the run folder; for weights without a run, the short name."""
        return self.short_name if self.trainings[0].run is None else Path(self.given).resolve().name

    @property
    def missing_curves(self) -> str | None:
        """Why the model has no learning curves; None if it has some."""
        if self.trainings[0].run is not None:
            return None
        if is_hub_run(self.given):
            return "weights from the Hub have no record of their epochs"
        if parse_weights_name(self.given):
            return "bundled weights have no record of their epochs"
        return "a checkpoint outside its run folder has no record of its epochs"


def choose_models(given: Sequence[str]) -> list[ComparedModel]:
    """Return the named models, or the newest finished run of each backbone under ``./runs``.

    Args:
        given: run folders, studies of seeds, ``hf://OWNER/NAME[@REVISION]``, checkpoint files, or ``NAME[/WEIGHTS]``
            for bundled weights.

    Raises:
        AgegenError: there are fewer than two models, or one of them is not finished.
    """
    if given:
        models = [_open_model(name) for name in given]
    else:
        newest = {str(run.read()["model"]): run for run in list_finished_runs()}
        models = [ComparedModel(str(newest[name].path), (_take_run(newest[name]),)) for name in sorted(newest)]
    places = {model.trainings[0].place.resolve() for model in models}
    if len(places) < max(2, len(models)):
        raise AgegenError(
            f"a comparison requires at least two different finished runs, not {len(models)}. Name them, name bundled "
            "weights (with --data), or train another model, for example with `agegen train --model vgg16`."
        )
    return models


def name_models(models: Sequence[ComparedModel]) -> tuple[str, ...]:
    """Return a distinct name for each model: the backbones, else the run folders, else the names that were given."""
    for names in ([model.short_name for model in models], [model.long_name for model in models]):
        if len(set(names)) == len(names):
            return tuple(names)
    return tuple(model.given for model in models)


def _open_model(given: str) -> ComparedModel:
    if is_hub_run(given):
        return ComparedModel(given, (ComparedRun(fetch_hub_run(given)),))
    path = Path(given)
    if is_study(path):
        return ComparedModel(given, _open_seeds(path))
    if bundled := parse_weights_name(given):
        return ComparedModel(given, (ComparedRun(find_weights(*bundled)),))
    if is_standalone_file(path):
        read_info(path)
        return ComparedModel(given, (ComparedRun(path),))
    return ComparedModel(given, (_take_run(open_run(path)),))


def _take_run(run: RunFolder) -> ComparedRun:
    if not run.read().get("finished"):
        raise AgegenError(f"{run.path} is not finished and cannot be compared yet")
    return ComparedRun(run.verify(run.checkpoint), run)


def _open_seeds(path: Path) -> tuple[ComparedRun, ...]:
    """Return the trainings of a study of seeds.

    Raises:
        AgegenError: it is not finished, or it is a cross-validation, whose trainings have different test faces.
    """
    folders = list_seed_runs(path)
    if not folders:
        raise AgegenError(
            f"{path} has no trainings with several seeds, and folds have different test faces; see `agegen eval {path}`"
        )
    return tuple(_take_run(open_run(folder)) for folder in folders)
