"""``agegen predict``, whole: inputs, estimates, rows, annotated copies and crops."""

from __future__ import annotations

import glob
import io
import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from agegen.data.images import RGB
from agegen.errors import AgegenError
from agegen.faces.detectors import DEFAULT_DETECTOR
from agegen.files import write_bytes
from agegen.predict.annotation import draw_annotation
from agegen.predict.estimator import Estimator
from agegen.predict.inputs import STDIN, find_inputs, read_path_list
from agegen.predict.results import PhotoPrediction
from agegen.predict.rows import RowWriter, open_writer, take_up

_KINDS = ("json", "jsonl", "csv")
_JPEG_SUFFIXES = (".jpg", ".jpeg")


@dataclass(frozen=True)
class PredictConfig:
    """Options of ``agegen predict``; ``json``, ``jsonl`` and ``csv`` are files, or ``-`` for stdout."""

    inputs: tuple[str, ...]
    model: str | None = None
    weights: str | None = None
    run: Path | None = None
    detector: str = DEFAULT_DETECTOR
    min_confidence: float | None = None
    min_score: float = 0.0
    min_face: float | None = None
    json: str | None = None
    jsonl: str | None = None
    csv: str | None = None
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


@dataclass(frozen=True)
class PredictStart:
    """What is about to happen; ``photos`` is None where a list on stdin has no known end."""

    photos: int | None
    model: str
    engine: str
    detector: str
    min_confidence: float
    calibrated: bool
    skipped: int


def predict_photos(
    config: PredictConfig, stdin: BinaryIO, stdout: BinaryIO
) -> Iterator[PredictStart | PhotoPrediction]:
    """Estimate the faces in all inputs and write what was asked for; yields the start, then each photograph.

    Raises:
        AgegenError: options that contradict each other, inputs without a picture, outputs that can't be written.
    """
    check_outputs(config)
    paths: Iterable[Path]
    if STDIN in config.inputs:
        paths, count = read_path_list(stdin), None
    else:
        paths = find_inputs(config.inputs)
        count = len(paths)
    estimator = Estimator.load(
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
    )
    done = find_finished(config, {"model": estimator.model.name, "detector": config.detector})
    if count is not None:
        paths = [path for path in paths if str(path) not in done]
        skipped, count = count - len(paths), len(paths)
    else:
        paths, skipped = (path for path in paths if str(path) not in done), len(done)
    model = estimator.model
    calibrated = model.calibration.faces > 0
    yield PredictStart(
        count, model.info.model, model.engine.name, config.detector, estimator.min_confidence, calibrated, skipped
    )
    with ExitStack() as stack:
        writers = [
            stack.enter_context(open_writer(kind, target, stdout, config.resume))
            for kind, target in config.outputs.items()
        ]
        keep = config.annotate is not None or config.crops is not None
        base = find_base(config.inputs)
        for photo in estimator.predict_many(paths, keep_images=keep):
            write_photo(photo, config, base, writers)
            yield photo


def check_outputs(config: PredictConfig) -> None:
    """Check that the options for inputs and outputs fit together.

    Raises:
        AgegenError: they don't.
    """
    if not config.inputs:
        raise AgegenError("give files, folders or globs, - for a list of paths on stdin, or --demo")
    if STDIN in config.inputs and len(config.inputs) > 1:
        raise AgegenError("- reads all paths from stdin; give no other input beside it")
    if sum(target == "-" for target in config.outputs.values()) > 1:
        raise AgegenError("only one of --json, --jsonl and --csv can go to stdout; give the other a file")
    if config.resume:
        resumable = [kind for kind, target in config.outputs.items() if kind != "json" and target != "-"]
        if len(resumable) != 1 or len(config.outputs) > 1:
            raise AgegenError("--resume goes on with one output: give either --csv FILE or --jsonl FILE")


def find_finished(config: PredictConfig, made_by: dict[str, str]) -> set[str]:
    """Return the files that need no more work: with ``--resume``, those whole in the output."""
    if not config.resume:
        return set()
    ((kind, target),) = config.outputs.items()
    return take_up(kind, Path(target), made_by)


def write_photo(photo: PhotoPrediction, config: PredictConfig, base: Path, writers: list[RowWriter]) -> None:
    """Write a photograph's pictures, then its rows: a row says that all of its photograph is done."""
    if config.annotate is not None and photo.image is not None:
        save_annotated(photo, config.annotate, base)
    if config.crops is not None:
        for face, crop in zip(photo.faces, photo.crops, strict=True):
            _save(place_copy(photo.file, config.crops, base, f"-{face.face}.png"), crop, photo.file)
    for writer in writers:
        writer.write(photo)


def save_annotated(photo: PhotoPrediction, folder: Path, base: Path) -> None:
    """Write an annotated copy under ``folder``, in the place that the photograph has under ``base``."""
    ending = "" if Path(photo.file).suffix.lower() in (*_JPEG_SUFFIXES, ".png") else ".png"
    _save(place_copy(photo.file, folder, base, ending), draw_annotation(photo), photo.file)


def find_base(inputs: Iterable[str]) -> Path:
    """Return the folder that all inputs lie in: the folders given, and those of the files given."""
    folders = [_find_folder(name) for name in inputs]
    return Path(os.path.commonpath([folder.absolute() for folder in folders]))


def _find_folder(name: str) -> Path:
    """Return the folder that an input lies in; of a glob, the part before its first sign."""
    path = Path(name)
    if path.is_dir():
        return path
    if os.path.lexists(path) or not glob.has_magic(name):
        return path.parent
    plain = list(itertools.takewhile(lambda part: not glob.has_magic(part), path.parts[:-1]))
    return Path(*plain)


def place_copy(file: str, folder: Path, base: Path, ending: str) -> Path:
    """Return the place of a copy: the file's path from ``base`` on, under ``folder``, never outside it."""
    path = Path(os.path.normpath(Path(file).absolute()))
    inside = path.relative_to(base) if path.is_relative_to(base) else path.relative_to(path.anchor)
    return folder / inside.with_name(inside.name + ending)


def _save(path: Path, image: RGB, source: str) -> None:
    if path.resolve() == Path(source).resolve():
        raise AgegenError(f"{path} is the photograph itself; choose another folder for the copies")
    stream = io.BytesIO()
    if path.suffix.lower() in _JPEG_SUFFIXES:
        Image.fromarray(image).save(stream, "JPEG", quality=92)
    else:
        Image.fromarray(image).save(stream, "PNG", compress_level=3)
    write_bytes(path, stream.getvalue())
