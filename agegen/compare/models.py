"""What is compared: runs that are named, or studies of seeds, or the newest run of each model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agegen.errors import AgegenError
from agegen.evaluate.study import is_study, list_seed_runs
from agegen.runs import RunFolder, list_finished_runs, open_run


@dataclass(frozen=True)
class ComparedModel:
    """What is compared: one training, or all trainings of a study of seeds; ``path`` is the folder that was named."""

    path: Path
    runs: tuple[RunFolder, ...]


def choose_models(paths: tuple[Path, ...]) -> list[ComparedModel]:
    """Return the runs and studies of seeds that are named, or the newest finished run of each model under ``./runs``.

    Raises:
        AgegenError: there are fewer than two, or one isn't finished.
    """
    if paths:
        models = [_open_seeds(path) if is_study(path) else ComparedModel(path, (open_run(path),)) for path in paths]
        for run in (run for model in models for run in model.runs):
            if not run.read().get("finished"):
                raise AgegenError(f"{run.path} is not finished; there is nothing to compare yet")
    else:
        newest = {str(run.read()["model"]): run for run in list_finished_runs()}
        models = [ComparedModel(newest[name].path, (newest[name],)) for name in sorted(newest)]
    if len({model.path.resolve() for model in models}) < max(2, len(models)):
        raise AgegenError(
            f"a comparison needs at least two different finished runs, not {len(models)}; name them, or train another "
            "model, e.g. `agegen train --model vgg16`"
        )
    return models


def _open_seeds(path: Path) -> ComparedModel:
    """Return a study of seeds.

    Raises:
        AgegenError: it isn't whole, or is one of folds, whose trainings are tested on different faces.
    """
    runs = tuple(RunFolder(folder) for folder in list_seed_runs(path))
    if not runs:
        raise AgegenError(
            f"{path} holds no trainings with several seeds: folds are tested each on other faces, see "
            f"`agegen eval {path}`"
        )
    for run in runs:
        open_run(run.path)
    return ComparedModel(path, runs)


def name_models(models: list[ComparedModel], names: list[str]) -> tuple[str, ...]:
    """Return a short name for each: its backbone where that tells them apart, else its folder's."""
    if len(set(names)) == len(names):
        return tuple(names)
    folders = [model.path.resolve().name for model in models]
    return tuple(folders if len(set(folders)) == len(folders) else [str(model.path) for model in models])
