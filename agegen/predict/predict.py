"""``agegen predict`` to rows: inputs, predictions, annotated copies and crops."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from inspect import signature
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from agegen.data.images import RGB, decode_photo, read_image_file
from agegen.errors import DataError
from agegen.faces.matching import MIN_FACES, make_crop_notices, make_margin_notices, measure_crops
from agegen.machine import count_cores
from agegen.predict.annotation import ImageWriter, annotate_video
from agegen.predict.boxes import GivenFaces, NoDetector, read_boxes
from agegen.predict.config import STDIN, PredictConfig, check_options
from agegen.predict.estimator import Estimator, Waiting, stream_in_order
from agegen.predict.inputs import (
    ImageSource,
    find_inputs,
    is_parquet_or_remote,
    list_shards,
    make_source,
    read_shard,
    read_stdin,
)
from agegen.predict.results import PhotoPrediction
from agegen.predict.rows import list_extra_columns, load_resume_state, open_writer
from agegen.predict.tracking import predict_video
from agegen.predict.video import Sampling, VideoOptions, is_video

# Crops to search for faces: enough for their median size, and a few seconds of work.
_SAMPLED_CROPS = 30
# The longer side, in pixels, to which they are decoded: detectors search no larger images.
_SAMPLED_SIDE = 1024


@dataclass(frozen=True)
class PredictStart:
    """What is about to be done.

    Attributes:
        photos: the number of images; None if it is unknown: a list on stdin, or one row per video frame.
        model: the name of the model, and its ``engine``.
        detector: the name of the detector.
        thresholds: gender is ``uncertain`` below these probabilities: the lowest and the highest at any age.
        calibrated: whether the model was calibrated.
        skipped: the number of images finished before.
        ignored: one line about the files in folders that are not images.
        notices: what is wrong with images that are processed as crops.
    """

    photos: int | None
    model: str
    engine: str
    detector: str
    thresholds: tuple[float, float]
    calibrated: bool
    skipped: int
    ignored: str | None = None
    notices: tuple[str, ...] = ()

    @classmethod
    def create(
        cls,
        estimator: Estimator,
        photos: int | None,
        skipped: int,
        ignored: str | None = None,
        notices: tuple[str, ...] = (),
    ) -> PredictStart:
        """Describe an estimator and its work."""
        model = estimator.model
        return cls(
            photos=photos,
            model=model.info.model,
            engine=model.engine.name,
            detector=estimator.detector,
            thresholds=estimator.row_builder.threshold_range,
            calibrated=model.calibration.faces > 0,
            skipped=skipped,
            ignored=ignored,
            notices=notices,
        )


def predict_photos(
    config: PredictConfig, stdin: BinaryIO, stdout: BinaryIO
) -> Iterator[PredictStart | PhotoPrediction]:
    """Predict all inputs and write the requested outputs; yields the start, then the result of each photo.

    Raises:
        AgegenError: invalid combination of options, inputs without images, or an output that cannot be written.
    """
    check_options(config)
    boxes = None if config.boxes is None else read_boxes(config.boxes)
    images, count, ignored = list_images(config.inputs, boxes, stdin)
    estimator = load_estimator(config)
    options = config.format_row_options()
    columns = list_extra_columns(config.under, config.distribution)
    finished: set[str] = set()
    if config.resume:
        ((kind, target),) = config.outputs.items()
        origin = {"model": estimator.model.name, "detector": estimator.detector, "options": options}
        finished = load_resume_state(kind, Path(target), origin, columns)
    notices = check_crops(estimator, images) if estimator.detector == NoDetector.name and boxes is None else ()
    images, count, skipped = skip_finished(images, count, finished)
    yield PredictStart.create(estimator, None if config.frames else count, skipped, ignored, notices)
    copies = ImageWriter.create(config.annotate, config.crops, config.inputs)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(open_writer(kind, target, stdout, config.resume, columns))
            for kind, target in config.outputs.items()
        ]
        for photo in predict_images(estimator, images, boxes, make_video_options(config), options, copies):
            for writer in writers:
                writer.write(photo)
            yield photo


def load_estimator(config: PredictConfig) -> Estimator:
    """Load the estimator; each parameter of :meth:`Estimator.load` is an option of the same name.

    Raises:
        AgegenError: an option is invalid, or a required file is not available.
    """
    return Estimator.load(**{name: getattr(config, name) for name in signature(Estimator.load).parameters})


def check_crops(estimator: Estimator, images: Iterable[ImageSource]) -> tuple[str, ...]:
    """Return what is wrong with the crops to process: photos, or faces of another size than the model expects.

    Images that can be read only once are not checked. Each image is estimated by itself, so none is cut to match.
    """
    paths = [image for image in images if isinstance(image, str)] if isinstance(images, list) else []
    if len(paths) < MIN_FACES:
        return ()
    sample = random.Random(0).sample(paths, min(len(paths), _SAMPLED_CROPS))
    stats = measure_crops(lambda: _decode_readable(sample), "these images")
    return (*make_crop_notices(stats), *make_margin_notices(stats, estimator.model.template, trimmed=False))


def _decode_readable(paths: Iterable[str]) -> Iterator[RGB]:
    for path in paths:
        with suppress(DataError):
            yield decode_photo(read_image_file(path), _SAMPLED_SIDE).image


def make_video_options(config: PredictConfig) -> VideoOptions:
    """Return how to process videos."""
    return VideoOptions(Sampling(config.fps, config.every_frame), config.frames)


def list_images(
    inputs: Sequence[str], boxes: GivenFaces | None, stdin: BinaryIO
) -> tuple[Iterable[ImageSource], int | None, str | None]:
    """Return the images, their number (None if it is unknown), and one line about ignored files in folders.

    Raises:
        AgegenError: a folder or glob contains no image.
    """
    if STDIN in inputs:
        content = read_stdin(stdin)
        if isinstance(content, bytes):
            return [(STDIN, content)], 1, None
        return map(make_source, content), None, None
    if not inputs and boxes is not None:
        names = boxes.list_files()
        return names, len(names), None
    found = find_inputs(inputs)
    if not any(map(is_parquet_or_remote, found.names)):
        return found.names, len(found.names), found.describe_ignored()
    shards = list(list_shards(found.names))
    images = (image for shard in shards for image in read_shard(shard))
    return images, sum(shard.count for shard in shards), found.describe_ignored()


def skip_finished(
    images: Iterable[ImageSource], count: int | None, finished: set[str]
) -> tuple[Iterable[ImageSource], int | None, int]:
    """Return the images that are not finished, their number (None if it is unknown), and the number of the others."""
    remaining = (image for image in images if get_name(image) not in finished)
    if isinstance(images, list):
        left = list(remaining)
        return left, len(left), len(images) - len(left)
    return remaining, None if count is None else max(0, count - len(finished)), len(finished)


def get_name(image: ImageSource) -> str:
    """Return the name of an image in the rows."""
    return image[0] if isinstance(image, tuple) else os.fsdecode(image)


def predict_images(
    estimator: Estimator,
    images: Iterable[ImageSource],
    boxes: GivenFaces | None,
    video: VideoOptions,
    options: str,
    copies: ImageWriter,
) -> Iterator[PhotoPrediction]:
    """Yield the result of each photo, page, frame or video after its copies were written, so that rows come last.

    Args:
        estimator: the loaded model and detector.
        images: photos and videos.
        boxes: the known faces; then images are not searched.
        video: how to process videos.
        options: the column ``options``: non-default options that affect the rows.
        copies: writes annotated copies and crops.
    """
    photos = (
        replace(photo, options=options or None) for photo in _predict_all(estimator, images, boxes, video, copies)
    )
    if not copies.writes:
        yield from photos
        return
    # Drawing and encoding a photo takes longer than predicting it.
    threads = count_cores()
    for photo in stream_in_order(copies.save, photos, threads, threads):
        if not isinstance(photo, Waiting):
            yield photo


def _predict_all(
    estimator: Estimator,
    images: Iterable[ImageSource],
    boxes: GivenFaces | None,
    video: VideoOptions,
    copies: ImageWriter,
) -> Iterator[PhotoPrediction]:
    """Yield the results of consecutive photos together, and of each video separately."""
    keep, find_boxes = copies.keep, None if boxes is None else boxes.find

    def is_path_of_video(image: ImageSource) -> bool:
        return isinstance(image, str) and is_video(image, animations=video.frames)

    for are_videos, group in groupby(images, is_path_of_video):
        if are_videos:
            for image in group:
                yield from _predict_video(estimator, get_name(image), video, copies)
        else:
            yield from estimator.predict_many(group, keep_images=keep.images, keep_crops=keep.crops, boxes=find_boxes)


def _predict_video(
    estimator: Estimator, name: str, options: VideoOptions, copies: ImageWriter
) -> Iterator[PhotoPrediction]:
    """Yield the results for a video; its last row comes after its annotated copy was written."""
    result = yield from predict_video(estimator, name, options, copies.keep)
    if (target := copies.find_video_path(name)) is not None:
        annotate_video(name, result, options.sampling, target)
    if result.final is not None:
        yield result.final
