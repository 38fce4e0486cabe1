"""Run folders: the files that a training writes, and how runs are created and found."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from agegen.errors import AgegenError, CheckpointError
from agegen.files import ABSENT, Limits, Schema, digest_file, find_mismatch, replace_atomically, write_json

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_ROOT = Path("runs")
# A folder with this file is a study: several trainings, each with its own run folder.
STUDY_FILE = "study.json"
# What a training writes into its folder before run.json, also under temporary names.
_LEFTOVERS = re.compile(r"\.lock|split\.csv|\.(split-\w{8}\.csv|run-\w{8}\.json)")
# The columns of epochs.csv that every version of it has, as numbers.
_EPOCH_NUMBERS = ("train_loss", "val_loss", "val_mae", "val_accuracy", "lr", "seconds")


class _Plugin(Schema):
    distribution: str
    version: str


class _Options(Schema):
    """The options that other commands read; all of them are checked when the run is resumed."""

    batch_size: Annotated[int, Limits(min=1)]
    age_balance: float | None = None
    age_column: str | None = None
    gender_codes: str | None = None
    detector: str | None = None


class _Settings(Schema):
    epochs: Annotated[int, Limits(min=1)]
    lr: Annotated[float, Limits(min=0)]
    weight_decay: Annotated[float, Limits(min=0)]
    views: Annotated[int, Limits(min=1)]
    compute: str


class _Parameters(Schema):
    total: Annotated[int, Limits(min=0)]
    trainable: Annotated[int, Limits(min=0)]


class _Data(Schema):
    source: str | list[str]
    faces: Annotated[int, Limits(min=0)]
    fingerprint: str
    labels: str = ""
    terms: str | None = None
    trims: dict[str, dict[str, float]] = ABSENT
    counts: dict[str, int] = ABSENT
    split_origin: str = "seed"
    leaking_groups: int = 0
    persons: list[str] = ABSENT


class _Baseline(Schema):
    age: float
    female: bool


class _Start(Schema):
    checkpoint: str
    seen: dict[str, int] = ABSENT


class _Best(Schema):
    epoch: Annotated[int, Limits(min=1)]
    val_mae: float | None = None
    val_accuracy: float | None = None
    val_in_bracket: float | None = None


class _Seconds(Schema):
    total: float
    preparing: float = 0.0
    features: float = 0.0


class _Machine(Schema):
    device: str
    cores: int


class _Libraries(Schema):
    torch: str


class _RunRecord(Schema):
    """The schema of ``run.json``. Entries with a default are missing in older runs."""

    model: str
    plugin: _Plugin
    options: _Options
    settings: _Settings
    parameters: _Parameters
    data: _Data
    baseline: _Baseline
    seed: Annotated[int, Limits(min=0)]
    machine: _Machine
    libraries: _Libraries
    teachers: list[str] = ABSENT
    start: _Start | None = None
    command: str = ""
    resumed: list[str] = ABSENT
    finished: str | None = None
    best: _Best | None = None
    seconds: _Seconds | None = None
    sha256: dict[str, str] = ABSENT


class _FinishedRecord(Schema):
    """What ``run.json`` also has as soon as a run is finished."""

    best: _Best
    seconds: _Seconds


class _Metrics(Schema, others=lambda name: (tuple[float, float] if name.endswith("_ci95") else float) | None):
    """Metrics by name, and their intervals."""


class _Group(Schema):
    column: str
    value: str
    n: int
    small: bool
    age: _Metrics
    gender: _Metrics
    interval: _Metrics = ABSENT
    bracket: _Metrics = ABSENT


class _EvalRecord(Schema):
    """The schema of ``eval.json``."""

    n: int
    age: _Metrics
    gender: _Metrics
    groups: list[_Group]
    baseline: dict[str, _Metrics]
    counts: dict[str, int] = ABSENT
    bracket: _Metrics = ABSENT
    interval: _Metrics = ABSENT
    confident: _Metrics = ABSENT


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

    @property
    def has_state(self) -> bool:
        """Whether there is a saved state, intact or not, of an unfinished training."""
        return any(self.path.glob("state-*.safetensors"))

    def verify(self, path: Path) -> Path:
        """Return a file of this run, unchanged, after checking that it is the one that the run finished with.

        Runs that are not finished, and those of older versions, do not know.

        Raises:
            CheckpointError: it is another file.
        """
        expected = self.read().get("sha256", {}).get(path.name)
        if expected is None:
            return path
        try:
            found = digest_file(path)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
        if found != expected:
            raise CheckpointError(
                f"{path} is not the file that this training wrote: its SHA-256 is {found[:12]}…, run.json has "
                f"{expected[:12]}…. Restore it, or move it out of {self.path} to use it on its own."
            )
        return path

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
        if not path.exists():
            hint = ""
            if self.checkpoint.exists():
                hint = f". Restore it, or move {self.checkpoint.name} out of the folder to use it on its own."
            elif self.split.exists():
                hint = f". Its training was stopped before it began: start it again with --out {self.path}."
            raise CheckpointError(f"{self.path} is not a run folder: it has no run.json{hint}")
        content = read_json(path, _RunRecord)
        if content.get("finished") and (found := find_mismatch(content, _FinishedRecord)):
            raise CheckpointError(f"{path} is damaged: {found}")
        return content

    def read_evaluation(self) -> dict[str, Any]:
        """Return the content of ``eval.json``.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        return read_json(self.evaluation, _EvalRecord)

    def write(self, content: dict[str, Any]) -> None:
        """Write ``run.json``."""
        write_json(self.path / "run.json", content)

    def read_epochs(self) -> pd.DataFrame:
        """Return ``epochs.csv``: one row per epoch, at least one, with the fields of ``EpochResult``.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        import pandas as pd

        path = self.path / "epochs.csv"
        try:
            epochs = pd.read_csv(path)
            epochs = epochs.astype(dict.fromkeys(_EPOCH_NUMBERS, float) | {"best": bool})
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read {path}: {error}") from error
        except KeyError as error:
            raise CheckpointError(f"{path} is damaged: it lacks a column ({error.args[0]})") from error
        if epochs.empty:
            raise CheckpointError(f"{path} is damaged: it has no rows")
        return epochs

    def write_epochs(self, rows: list[dict[str, Any]]) -> None:
        """Write ``epochs.csv``, replacing all rows."""
        import pandas as pd

        with replace_atomically(self.path / "epochs.csv") as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False)


def read_json(path: Path, kind: type) -> dict[str, Any]:
    """Read a JSON file that has the fields of a dataclass; see :func:`agegen.files.find_mismatch`.

    Raises:
        CheckpointError: the file cannot be read or is damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if found := find_mismatch(content, kind):
        raise CheckpointError(f"{path} is damaged: {found}")
    return content


def create_run(out: Path | None, model: str) -> RunFolder:
    """Create the folder of a new run: ``out``, or ``runs/<model>-<time>``.

    Raises:
        AgegenError: the folder is in use or cannot be created.
    """
    try:
        if out is None:
            return RunFolder(_create_free_folder(DEFAULT_ROOT, model))
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AgegenError(f"cannot create the run folder {out or DEFAULT_ROOT}: {error.strerror}") from error
    check_unused(out)
    return RunFolder(out)


def check_unused(path: Path) -> None:
    """Check that a training can begin in a folder: it is missing, empty, or has what a killed one left at its start.

    Raises:
        AgegenError: it has other files.
    """
    try:
        others = [one.name for one in path.iterdir() if not _LEFTOVERS.fullmatch(one.name)] if path.exists() else []
    except OSError as error:
        raise AgegenError(f"cannot create the run folder {path}: {error.strerror}") from error
    if "run.json" in others and not RunFolder(path).read().get("finished"):
        raise AgegenError(
            f"{path} has an unfinished run. Resume it with `agegen train --resume {path}`, or choose another --out."
        )
    if others:
        raise AgegenError(f"{path} is not empty. Choose another --out.")


def _create_free_folder(root: Path, name: str) -> Path:
    """Create a folder that did not exist: the name, reduced to portable characters, and the time."""
    portable = re.sub(r"[^\w.-]+", "-", name)
    path = root / f"{portable}-{time.strftime('%Y%m%d-%H%M%S')}"
    candidate, number = path, 2
    while True:
        try:
            candidate.mkdir(parents=True)
            return candidate
        except FileExistsError:
            candidate = path.with_name(f"{path.name}-{number}")
            number += 1


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


def find_newest_run(root: Path = DEFAULT_ROOT) -> RunFolder:
    """Return the newest finished run in a folder.

    Raises:
        CheckpointError: no run is finished.
    """
    runs = list_finished_runs(root)
    if not runs:
        hint = "Train one with `agegen train --model scratch`."
        # An interrupted training leaves the state that it resumes from.
        states = sorted(root.glob("*/state-*.safetensors"), key=lambda path: path.stat().st_mtime)
        if states:
            hint = f"Finish one with `agegen train --resume {states[-1].parent}`."
        if damaged := describe_damaged_runs(root):
            hint = f"{damaged[-1]}."
        raise CheckpointError(f"no finished run under {root}/. {hint}")
    return runs[-1]


def describe_damaged_runs(root: Path = DEFAULT_ROOT, after: RunFolder | None = None) -> list[str]:
    """Return a notice for each run in a folder that cannot be read, by the time of their last change, oldest first.

    ``after``: only those that were changed after this run was finished.
    """
    damaged = []
    for path in root.glob("*/run.json"):
        try:
            RunFolder(path.parent).read()
        except CheckpointError as error:
            damaged.append((path.stat().st_mtime, f"the run {path.parent} is left out: {error}"))
    least = 0.0 if after is None else (after.path / "run.json").stat().st_mtime
    return [notice for changed, notice in sorted(damaged) if changed >= least]


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
    return float(record["seconds"]["total"]) - float(record["seconds"].get("preparing", 0))


def list_sources(record: dict[str, Any]) -> tuple[str, ...]:
    """Return the datasets of a run as ``--data`` takes them; ``run.json`` holds one as a string, several as a list."""
    source = record["data"]["source"]
    return (source,) if isinstance(source, str) else tuple(source)
