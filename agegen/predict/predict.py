"""``agegen predict``, whole: inputs, estimates, rows, annotated copies and crops."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from agegen.machine import count_cores
from agegen.options import select_fields
from agegen.predict.annotation import ImageWriter, annotate_video, find_base
from agegen.predict.boxes import GivenFaces, read_boxes
from agegen.predict.config import STDIN, PredictConfig, check_options
from agegen.predict.estimator import Estimator, Picture, Waiting, stream_in_order
from agegen.predict.extraction import Keep
from agegen.predict.inputs import SHARD_IMAGES, find_inputs, find_picture, is_store, list_shards, read_shard, read_stdin
from agegen.predict.results import PhotoPrediction
from agegen.predict.rows import load_resume_state, name_columns, open_writer
from agegen.predict.tracking import VideoOptions, VideoResult, is_watched, watch_video
from agegen.predict.video import Sampling


@dataclass(frozen=True)
class PredictStart:
    """What is about to happen; ``photos`` is None where the end isn't known: a list on stdin, rows of frames.

    ``passed`` says what folders have besides pictures.
    """

    photos: int | None
    model: str
    engine: str
    detector: str
    min_confidence: float
    calibrated: bool
    skipped: int
    passed: str | None = None


def predict_photos(
    config: PredictConfig, stdin: BinaryIO, stdout: BinaryIO
) -> Iterator[PredictStart | PhotoPrediction]:
    """Estimate the faces in all inputs and write what was asked for; yields the start, then each photograph.

    Raises:
        AgegenError: options that contradict each other, inputs without a picture, outputs that can't be written.
    """
    check_options(config)
    given = load_boxes(config)
    pictures, count, passed = list_images(config, given, stdin)
    estimator = load_estimator(config)
    done = find_finished(config, estimator)
    if isinstance(pictures, list) and count is not None:
        pictures = [picture for picture in pictures if name_input(picture) not in done]
        skipped, count = count - len(pictures), len(pictures)
    else:
        pictures, skipped = (picture for picture in pictures if name_input(picture) not in done), len(done)
        count = None if count is None else max(0, count - skipped)
    model = estimator.model
    yield PredictStart(
        photos=None if config.frames else count,
        model=model.info.model,
        engine=model.engine.name,
        detector=estimator.detector,
        min_confidence=estimator.min_confidence,
        calibrated=model.calibration.faces > 0,
        skipped=skipped,
        passed=passed,
    )
    more = name_columns(config.under, config.distribution)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(open_writer(kind, target, stdout, config.resume, more))
            for kind, target in config.outputs.items()
        ]
        for photo in run_all(config, estimator, pictures, given):
            for writer in writers:
                writer.write(photo)
            yield photo


def load_boxes(config: PredictConfig) -> GivenFaces | None:
    """Return the bounding boxes of ``--boxes``; None if faces are to be detected."""
    return None if config.boxes is None else read_boxes(config.boxes)


def load_estimator(config: PredictConfig) -> Estimator:
    """Load the model and the detector that the options name."""
    return Estimator.load(**{name: getattr(config, name) for name in select_fields(PredictConfig, loads=True)})


def list_images(
    config: PredictConfig, given: GivenFaces | None, stdin: BinaryIO
) -> tuple[Iterable[Picture], int | None, str | None]:
    """Return the inputs, their number (None where it isn't known), and what folders have besides.

    Raises:
        AgegenError: a folder or glob has no picture.
    """
    if STDIN in config.inputs:
        content = read_stdin(stdin)
        if isinstance(content, bytes):
            return [(STDIN, content)], 1, None
        return map(find_picture, content), None, None
    if not config.inputs and given is not None and config.boxes is not None:
        names = given.list_files(config.boxes)
        return names, len(names), None
    found = find_inputs(config.inputs)
    if not any(map(is_store, found.names)):
        return found.names, len(found.names), found.describe_passed()
    shards = list(list_shards(found.names, SHARD_IMAGES))
    stored = (picture for shard in shards for picture in read_shard(shard))
    return stored, sum(shard.count for shard in shards), found.describe_passed()


def name_input(picture: Picture) -> str:
    """Return what a picture is called in the rows."""
    return picture[0] if isinstance(picture, tuple) else os.fsdecode(picture)


def find_finished(config: PredictConfig, estimator: Estimator) -> set[str]:
    """Return the files that need no more work: with ``--resume``, those whole in the output."""
    if not config.resume:
        return set()
    ((kind, target),) = config.outputs.items()
    made_by = {"model": estimator.model.name, "detector": estimator.detector, "options": config.describe()}
    return load_resume_state(kind, Path(target), made_by, name_columns(config.under, config.distribution))


def run_all(
    config: PredictConfig, estimator: Estimator, pictures: Iterable[Picture], given: GivenFaces | None
) -> Iterator[PhotoPrediction]:
    """Yield each photograph, page, frame or video, its copies written; a row says that all of its file is done."""
    plain = config.annotate is None and config.crops is None
    # Where there are copies, they lie to each other as their originals do.
    base = Path() if plain else find_base(name for name in config.inputs if name != STDIN)
    copies = ImageWriter(config.annotate, config.crops, base)
    options = config.describe() or None
    photos = (replace(photo, options=options) for photo in look_at_all(config, estimator, pictures, given, copies))
    if plain:
        yield from photos
        return
    # Drawing and packing a photograph takes longer than estimating its faces.
    threads = count_cores()
    for photo in stream_in_order(copies.save, photos, threads, threads):
        if not isinstance(photo, Waiting):
            yield photo


def look_at_all(
    config: PredictConfig,
    estimator: Estimator,
    pictures: Iterable[Picture],
    given: GivenFaces | None,
    copies: ImageWriter,
) -> Iterator[PhotoPrediction]:
    """Yield what is found in each picture or video, in their order."""
    sampling = Sampling(config.fps, config.every_frame)
    watching = VideoOptions(sampling, config.frames, keep_paths=config.annotate is not None)
    # Of a picture on stdin there is no file to decode for its annotated copy.
    keep = Keep(images=STDIN in config.inputs and config.annotate is not None, crops=config.crops is not None)

    def is_video(picture: Picture) -> bool:
        return isinstance(picture, str) and is_watched(picture, watching)

    for video, group in groupby(pictures, is_video):
        if not video:
            boxes = given.of if given is not None else None
            yield from estimator.predict_many(group, keep_images=keep.images, keep_crops=keep.crops, boxes=boxes)
            continue
        for name in group:
            assert isinstance(name, str)
            watched: list[VideoResult] = []
            for photo in watch_video(estimator, name, watching, keep, watched):
                if watched and (target := copies.place_video(name)) is not None:
                    annotate_video(name, watched[0], sampling, target)
                yield photo
            if config.frames and (target := copies.place_video(name)) is not None:
                annotate_video(name, watched[0], sampling, target)
