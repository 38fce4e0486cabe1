"""Run folders: the files that a training writes, and how runs are created and found."""

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
# A folder with this file is a study: several trainings, each with its own run folder.
STUDY_FILE = "study.json"
# The entries that run.json has from its first version on, and their types.
_REQUIRED = {"model": str, "options": dict, "settings": dict, "parameters": dict, "data": dict, "baseline": dict}


@dataclass(frozen=True)
class RunFolder:
    """The folder of one training: ``run.json``, ``split.csv``, ``epochs.csv``, ``best.safetensors``, ``best.onnx``,
    ``eval.json``, ``predictions.parquet``, ``curves.png`` and ``MODEL_CARD.md``.
    """

    path: Path

    @property
    def checkpoint(self) -> Path:
        """The weights of the best epoch."""
        return self.path / "best.safetensors"

    @property
    def onnx(self) -> Path:
        """The best epoch's model as ONNX, for inference; missing if the backbone cannot be exported."""
        return self.path / "best.onnx"

    @property
    def split(self) -> Path:
        """The split (train, val, test) of each image."""
        return self.path / "split.csv"

    @property
    def curves(self) -> Path:
        """The learning curves as an image."""
        return self.path / "curves.png"

    @property
    def evaluation(self) -> Path:
        """The metrics on the test set."""
        return self.path / "eval.json"

    @property
    def predictions(self) -> Path:
        """Estimates and labels of the test set, one row per face."""
        return self.path / "predictions.parquet"

    @property
    def card(self) -> Path:
        """The model card."""
        return self.path / "MODEL_CARD.md"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder for this process inside the block.

        Raises:
            AgegenError: another process holds the lock.
        """
        from filelock import FileLock, Timeout

        # The lock file is never deleted: by then another process may have acquired the lock.
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise AgegenError(f"{self.path} is in use by another process. Wait until it has finished.") from error
        try:
            yield
        finally:
            lock.release()

    def read(self) -> dict[str, Any]:
        """Return the content of ``run.json``.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        path = self.path / "run.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.path} is not a run folder: it has no run.json") from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} is damaged: it is not a JSON object")
        for name, kind in _REQUIRED.items():
            if not isinstance(content.get(name), kind):
                raise CheckpointError(f"{path} is damaged: '{name}' is missing or has the wrong type")
        return content

    def write(self, content: dict[str, Any]) -> None:
        """Write ``run.json``."""
        write_json(self.path / "run.json", content)

    def read_epochs(self) -> pd.DataFrame:
        """Return ``epochs.csv``: one row per epoch, with the fields of ``EpochResult``.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        import pandas as pd

        path = self.path / "epochs.csv"
        try:
            return pd.read_csv(path)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read {path}: {error}") from error

    def write_epochs(self, rows: list[dict[str, Any]]) -> None:
        """Write ``epochs.csv``, replacing all rows."""
        import pandas as pd

        with replace_atomically(self.path / "epochs.csv") as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False)


def create_run(out: Path | None, model: str) -> RunFolder:
    """Create the folder of a new run: ``out``, or ``runs/<model>-<time>``.

    Raises:
        AgegenError: the folder is not empty or cannot be created.
    """
    path = out or _find_free_path(DEFAULT_ROOT, model)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise AgegenError(f"{path} is not empty. Choose another --out.")
    except OSError as error:
        raise AgegenError(f"cannot create the run folder {path}: {error.strerror}") from error
    return RunFolder(path)


def _find_free_path(root: Path, name: str) -> Path:
    """Return a path that does not exist yet: the name, reduced to portable characters, and the time."""
    portable = re.sub(r"[^\w.-]+", "-", name)
    path = root / f"{portable}-{time.strftime('%Y%m%d-%H%M%S')}"
    candidate, number = path, 2
    while candidate.exists():
        candidate = path.with_name(f"{path.name}-{number}")
        number += 1
    return candidate


def open_run(path: Path) -> RunFolder:
    """Return an existing run; ``path`` is its folder or a file in it.

    Raises:
        CheckpointError: the path does not exist or does not belong to a run.
    """
    run = RunFolder(path if path.is_dir() else path.parent)
    if not path.exists():
        raise CheckpointError(f"no run at {path}")
    run.read()
    return run


def is_standalone_file(path: Path) -> bool:
    """Return whether a path is a file of weights outside a run folder."""
    return path.is_file() and not (path.parent / "run.json").exists()


def find_newest_run(root: Path = DEFAULT_ROOT, model: str | None = None) -> RunFolder:
    """Return the newest finished run in a folder, of one model or of any.

    Raises:
        CheckpointError: no run is finished.
    """
    runs = [run for run in list_finished_runs(root) if model in (None, run.read()["model"])]
    if not runs:
        kind = f" of {model}" if model else ""
        hint = f"Train one with `agegen train --model {model or 'scratch'}`."
        # An interrupted training leaves the state that it resumes from.
        states = sorted(root.glob("*/state-*.safetensors"), key=lambda path: path.stat().st_mtime)
        if states:
            hint = f"Finish one with `agegen train --resume {states[-1].parent}`."
        raise CheckpointError(f"no finished run{kind} under {root}/. {hint}")
    return runs[-1]


def list_finished_runs(root: Path = DEFAULT_ROOT) -> list[RunFolder]:
    """Return the finished runs in a folder, oldest first; folders without a valid ``run.json`` are skipped."""
    finished = []
    for path in root.glob("*/run.json"):
        run = RunFolder(path.parent)
        try:
            content = run.read()
        except CheckpointError:
            continue
        if content.get("finished"):
            finished.append((str(content["finished"]), run))
    return [run for _, run in sorted(finished, key=lambda pair: (pair[0], pair[1].path))]


def compute_training_seconds(record: dict[str, Any]) -> float:
    """Return the training time in ``run.json``, without feature extraction: other runs reuse the cached features."""
    return float(record["seconds"]["total"]) - float(record["seconds"]["preparing"])


def list_sources(record: dict[str, Any]) -> tuple[str, ...]:
    """Return the datasets of a run as ``--data`` takes them; ``run.json`` holds one as a string, several as a list."""
    source = record["data"]["source"]
    return (source,) if isinstance(source, str) else tuple(source)
