"""The options of ``agegen predict``: valid combinations, and the estimator that they describe."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from pathlib import Path

from agegen.errors import AgegenError
from agegen.faces.detection import AUTO
from agegen.predict.estimator import Estimator
from agegen.predict.inputs import STDIN
from agegen.predict.video import Sampling, VideoOptions

_ROW_FORMATS = ("json", "jsonl", "csv")
# The options that affect the rows, except model and detector, which have separate columns.
_ROW_OPTIONS = (
    "min_confidence",
    "min_score",
    "min_face",
    "boxes",
    "fps",
    "every_frame",
    "frames",
    "under",
    "distribution",
)


@dataclass(frozen=True)
class PredictConfig:
    """Options of ``agegen predict``; ``json``, ``jsonl`` and ``csv`` are files, or ``-`` for stdout.

    ``parquet`` is a folder or remote address for shards, and ``cluster`` where to compute them: see
    :mod:`agegen.predict.shards`.
    """

    inputs: tuple[str, ...]
    model: str | None = None
    weights: str | None = None
    run: Path | None = None
    detector: str = AUTO
    min_confidence: float | None = None
    min_score: float = 0.0
    min_face: float | None = None
    boxes: Path | None = None
    distribution: bool = False
    under: tuple[int, ...] = ()
    fps: float = 2.0
    every_frame: bool = False
    frames: bool = False
    json: str | None = None
    jsonl: str | None = None
    csv: str | None = None
    parquet: str | None = None
    cluster: str | None = None
    annotate: Path | None = None
    crops: Path | None = None
    resume: bool = False
    device: str = "auto"
    precision: str = "auto"
    engine: str = "auto"

    @property
    def outputs(self) -> dict[str, str]:
        """The requested outputs of rows: format and target."""
        chosen = {kind: getattr(self, kind) for kind in _ROW_FORMATS}
        return {kind: target for kind, target in chosen.items() if target is not None}

    @property
    def video(self) -> VideoOptions:
        """How to process videos."""
        return VideoOptions(Sampling(self.fps, self.every_frame), self.frames)

    def format_row_options(self) -> str:
        """Return the non-default options that affect the rows, such as ``min_score=0.5``; "" if there are none."""
        values = {name: getattr(self, name) for name in _ROW_OPTIONS}
        defaults = {name: getattr(PredictConfig(()), name) for name in _ROW_OPTIONS}
        return " ".join(f"{name}={_format(value)}" for name, value in values.items() if value != defaults[name])


def check_options(config: PredictConfig) -> None:
    """Check the combination of inputs and outputs.

    Raises:
        AgegenError: it is invalid.
    """
    if not config.inputs and config.boxes is None:
        raise AgegenError("no input. Give files, folders or globs, - for paths or an image on stdin, or --demo.")
    if STDIN in config.inputs and len(config.inputs) > 1:
        raise AgegenError("- cannot be combined with other inputs")
    if not config.fps > 0:
        raise AgegenError("--fps must be greater than 0")
    if sum(target == "-" for target in config.outputs.values()) > 1:
        raise AgegenError("only one of --json, --jsonl and --csv can write to stdout. Give a file for the others.")
    if config.cluster is not None and config.parquet is None:
        raise AgegenError("--cluster requires --parquet OUT")
    if config.parquet is not None:
        others = [name for name in (*_ROW_FORMATS, "annotate", "crops") if getattr(config, name) is not None]
        if others:
            raise AgegenError(f"--parquet cannot be combined with --{others[0]}")
        return
    if config.resume:
        resumable = [kind for kind, target in config.outputs.items() if kind != "json" and target != "-"]
        if len(resumable) != 1 or len(config.outputs) > 1:
            raise AgegenError("--resume requires exactly one output: either --csv FILE or --jsonl FILE")


def load_estimator(config: PredictConfig) -> Estimator:
    """Load the estimator; each parameter of :meth:`Estimator.load` is an option of the same name.

    Raises:
        AgegenError: an option is invalid, or a required file is not available.
    """
    return Estimator.load(**{name: getattr(config, name) for name in signature(Estimator.load).parameters})


def _format(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
