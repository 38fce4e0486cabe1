"""The options of ``agegen predict``: which fit together, and what they load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agegen.errors import AgegenError
from agegen.faces.detection import AUTO
from agegen.predict.boxes import GivenFaces, read_boxes
from agegen.predict.estimator import Estimator
from agegen.predict.inputs import STDIN

_KINDS = ("json", "jsonl", "csv")
# Of a shard: few enough that little is lost where a process dies, enough that files are no trouble.
SHARD_IMAGES = 1000
# Options that decide on what the rows say, beside model and detector, which have columns of their own.
_DECIDING = (
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

    ``parquet`` is a folder or an address for shards, and ``cluster`` where they are made: see
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
        """The row outputs asked for, by kind."""
        chosen = {kind: getattr(self, kind) for kind in _KINDS}
        return {kind: target for kind, target in chosen.items() if target is not None}

    def describe(self) -> str:
        """Return the options that decide on the rows and aren't as they are by themselves; "" where all are."""
        chosen = {name: getattr(self, name) for name in _DECIDING}
        usual = {name: getattr(PredictConfig(()), name) for name in _DECIDING}
        return " ".join(f"{name}={_phrase(value)}" for name, value in chosen.items() if value != usual[name])


def check_options(config: PredictConfig) -> None:
    """Check that the options for inputs and outputs fit together.

    Raises:
        AgegenError: they don't.
    """
    if not config.inputs and config.boxes is None:
        raise AgegenError("give files, folders or globs, - for a list of paths or a picture on stdin, or --demo")
    if STDIN in config.inputs and len(config.inputs) > 1:
        raise AgegenError("- reads all from stdin; give no other input beside it")
    if not config.fps > 0:
        raise AgegenError("--fps must be more than 0")
    if sum(target == "-" for target in config.outputs.values()) > 1:
        raise AgegenError("only one of --json, --jsonl and --csv can go to stdout; give the other a file")
    if config.cluster is not None and config.parquet is None:
        raise AgegenError("--cluster writes shards: give --parquet OUT")
    if config.parquet is not None:
        others = [name for name in (*_KINDS, "annotate", "crops") if getattr(config, name) is not None]
        if others:
            raise AgegenError(f"--parquet goes without --{others[0]}")
        return
    if config.resume:
        resumable = [kind for kind, target in config.outputs.items() if kind != "json" and target != "-"]
        if len(resumable) != 1 or len(config.outputs) > 1:
            raise AgegenError("--resume goes on with one output: give either --csv FILE or --jsonl FILE")


def load_boxes(config: PredictConfig) -> GivenFaces | None:
    """Return the faces that the options give, None where faces are to be found."""
    return None if config.boxes is None else read_boxes(config.boxes)


def load_estimator(config: PredictConfig) -> Estimator:
    """Load the model and the detector that the options name."""
    return Estimator.load(
        config.model,
        run=config.run,
        detector=config.detector,
        min_confidence=config.min_confidence,
        device=config.device,
        precision=config.precision,
        engine=config.engine,
        weights=config.weights,
        min_score=config.min_score,
        min_face=config.min_face,
        distribution=config.distribution,
        under=config.under,
    )


def _phrase(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
