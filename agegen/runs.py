"""The run folder: everything that a training leaves behind, and how it is found again."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agegen.errors import AgegenError, CheckpointError
from agegen.files import replace_atomically, write_json

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_ROOT = Path("runs")
# Makes a folder a study: several trainings, each in a run folder of its own.
STUDY_FILE = "study.json"
# What run.json holds from its first writing on.
_PARTS = {"model": str, "options": dict, "settings": dict, "parameters": dict, "data": dict, "baseline": dict}


@dataclass(frozen=True)
class RunFolder:
    """``run.json``, ``split.csv``, ``epochs.csv``, ``best.safetensors``, ``best.onnx``,
    ``eval.json``, ``predictions.parquet``, ``curves.png`` and ``MODEL_CARD.md`` of one training.
    """

    path: Path

    @property
    def checkpoint(self) -> Path:
        """The best epoch's weights."""
        return self.path / "best.safetensors"

    @property
    def onnx(self) -> Path:
        """The same as ONNX, for predicting; not there where the backbone can't be exported."""
        return self.path / "best.onnx"

    @property
    def split(self) -> Path:
        """Which picture is in which split."""
        return self.path / "split.csv"

    @property
    def curves(self) -> Path:
        """The learning curves as a picture."""
        return self.path / "curves.png"

    @property
    def evaluation(self) -> Path:
        """The metrics on the test split."""
        return self.path / "eval.json"

    @property
    def predictions(self) -> Path:
        """Estimates and labels of the test split, one row per face."""
        return self.path / "predictions.parquet"

    @property
    def card(self) -> Path:
        """The model card."""
        return self.path / "MODEL_CARD.md"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one process.

        Raises:
            AgegenError: another process holds it.
        """
        from filelock import FileLock, Timeout

        # The file stays: whoever deletes it after letting go may delete it under another process that holds it by then.
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise AgegenError(f"{self.path} is in use by another process; wait for it to end") from error
        try:
            yield
        finally:
            lock.release()

    def read(self) -> dict[str, Any]:
        """Return ``run.json``.

        Raises:
            CheckpointError: it isn't there or is damaged.
        """
        path = self.path / "run.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.path} is no run folder: it has no run.json") from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} is damaged: it holds no object")
        for name, kind in _PARTS.items():
            if not isinstance(content.get(name), kind):
                raise CheckpointError(f"{path} is damaged: '{name}' is missing or of another kind")
        return content

    def write(self, content: dict[str, Any]) -> None:
        """Write ``run.json``."""
        write_json(self.path / "run.json", content)

    def read_epochs(self) -> pd.DataFrame:
        """Return ``epochs.csv``: one row per epoch, the fields of ``EpochResult``."""
        import pandas as pd

        try:
            return pd.read_csv(self.path / "epochs.csv")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"can't read {self.path / 'epochs.csv'}: {error}") from error

    def write_epochs(self, rows: list[dict[str, Any]]) -> None:
        """Write ``epochs.csv`` anew."""
        import pandas as pd

        with replace_atomically(self.path / "epochs.csv") as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False)


def create_run(out: Path | None, model: str) -> RunFolder:
    """Make the folder of a new run: ``out``, or ``runs/<model>-<time>``.

    Raises:
        AgegenError: it exists and isn't empty, or can't be made.
    """
    path = out or _find_free_name(DEFAULT_ROOT, model)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise AgegenError(f"{path} is not empty; choose another --out")
    except OSError as error:
        raise AgegenError(f"can't make the run folder {path}: {error.strerror}") from error
    return RunFolder(path)


def is_standalone_file(path: Path) -> bool:
    """Return whether a path is a file of weights outside of any run folder."""
    return path.is_file() and not (path.parent / "run.json").exists()


def open_run(path: Path) -> RunFolder:
    """Return an existing run; ``path`` is its folder or a file in it.

    Raises:
        CheckpointError: there is no run.
    """
    run = RunFolder(path if path.is_dir() else path.parent)
    if not path.exists():
        raise CheckpointError(f"no run at {path}")
    run.read()
    return run


def find_newest_run(root: Path = DEFAULT_ROOT, model: str | None = None) -> RunFolder:
    """Return the newest finished run under a folder, of one model or of any.

    Raises:
        CheckpointError: there is none.
    """
    runs = [run for run in list_finished_runs(root) if model in (None, run.read()["model"])]
    if not runs:
        kind = f" of {model}" if model else ""
        raise CheckpointError(
            f"no finished run{kind} under {root}/; train one with `agegen train --model {model or 'scratch'}`"
        )
    return runs[-1]


def list_finished_runs(root: Path = DEFAULT_ROOT) -> list[RunFolder]:
    """Return the finished runs under a folder, oldest first; folders that are no runs are passed over."""
    finished = []
    for path in root.glob("*/run.json"):
        run = RunFolder(path.parent)
        try:
            content = run.read()
        except CheckpointError:
            continue
        if content.get("finished") and isinstance(content.get("model"), str):
            finished.append((str(content["finished"]), run))
    return [run for _, run in sorted(finished, key=lambda pair: (pair[0], pair[1].path))]


def _find_free_name(root: Path, name: str) -> Path:
    """Return a path that isn't taken: a name, as far as all systems take it, with the time."""
    plain = re.sub(r"[^\w.-]+", "-", name)
    path = root / f"{plain}-{time.strftime('%Y%m%d-%H%M%S')}"
    candidate, number = path, 2
    while candidate.exists():
        candidate = path.with_name(f"{path.name}-{number}")
        number += 1
    return candidate


def compute_training_seconds(record: dict[str, Any]) -> float:
    """Return what a run's training took, from its record: cached features, which serve any number of runs, not."""
    seconds = record["seconds"]
    return float(seconds["total"]) - float(seconds.get("preparing", 0.0))


def list_sources(record: dict[str, Any]) -> tuple[str, ...]:
    """Return the data sets of a run, from its record; runs of one set keep it as text."""
    source = record["data"]["source"]
    return (source,) if isinstance(source, str) else tuple(source)


def name_source(data: str) -> str:
    """Return a data set's short name: the last part of its path, without the weight that ``::`` gives it."""
    return Path(data.partition("::")[0]).name
