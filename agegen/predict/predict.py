"""``agegen predict`` to rows: inputs, predictions, annotated copies and crops."""

from __future__ import annotations

import os
import random
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from inspect import signature
from itertools import chain, groupby
from pathlib import Path
from typing import BinaryIO

from agegen.data.images import RGB, decode_photo, read_image_file
from agegen.data.remote import is_remote
from agegen.errors import DataError
from agegen.machine import count_cores
from agegen.predict.annotation import ImageWriter, annotate_video
from agegen.predict.boxes import GivenFaces, NoDetector, read_boxes
from agegen.predict.config import STDIN, PredictConfig
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
from agegen.predict.results import GIVEN, UNREADABLE, PhotoPrediction, add_reason
from agegen.predict.rows import RowWriter, list_extra_columns, load_resume_state, open_report, open_writer, read_rows
from agegen.predict.tracking import predict_video
from agegen.predict.video import Sampling, VideoOptions, is_video
from agegen.render.gallery import GalleryAbout

# Crops to search for faces: enough for their median size, and at most a few seconds of work.
_SAMPLED_CROPS = 30
# The longer side, in pixels, to which they are decoded: detectors search no larger images.
_SAMPLED_SIDE = 1024


@dataclass(frozen=True)
class PredictStart:
    """What is about to be done.

    Attributes:
        photos: the number of images; None if it is unknown: a list on stdin, or one row per video frame.
        model: the name of the model, and its ``engine``; ``onnx, int8`` in int8.
        detector: the name of the detector.
        thresholds: gender is ``uncertain`` below these probabilities: the lowest and the highest at any age.
        calibrated: whether the model was calibrated.
        skipped: the number of images finished before.
        ignored: one line about the files in folders that are not images.
        notices: about an ONNX file that could not be used.
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
    ) -> PredictStart:
        """Describe an estimator and its work."""
        model = estimator.model
        return cls(
            photos=photos,
            model=model.info.model,
            engine=f"{model.engine.name}, int8" if model.engine.precision == "int8" else model.engine.name,
            detector=estimator.detector,
            thresholds=estimator.row_builder.threshold_range,
            calibrated=model.calibration.faces > 0,
            skipped=skipped,
            ignored=ignored,
            notices=tuple(filter(None, [model.engine.notice])),
        )


@dataclass(frozen=True)
class PredictNotice:
    """What the user should know, found while images are predicted."""

    text: str


@dataclass(frozen=True)
class PhotoList:
    """The images to predict.

    Attributes:
        images: paths, or names with contents.
        count: their number; None if it is unknown.
        boxes: the known faces; then the images are not searched.
        ignored: one line about the files in folders that are not images.
    """

    images: Iterable[ImageSource]
    count: int | None
    boxes: GivenFaces | None = None
    ignored: str | None = None


def predict_photos(
    config: PredictConfig, estimator: Estimator, photos: PhotoList, stdout: BinaryIO
) -> Generator[PredictStart | PredictNotice | PhotoPrediction, None, None]:
    """Predict photos and write the requested outputs; yields the start, then the result of each photo.

    Meanwhile another thread checks images that are processed as crops; what is wrong with them follows later.

    Raises:
        AgegenError: an output cannot be written.
    """
    options = config.format_row_options()
    columns = list_extra_columns(config.under, config.distribution)
    finished: Collection[str] = ()
    if config.resume:
        ((kind, target),) = config.outputs.items()
        origin = {"model": estimator.model.name, "detector": estimator.detector, "options": options}
        finished = load_resume_state(kind, Path(target), origin, columns)
    is_checked = estimator.detector == NoDetector.name and photos.boxes is None
    images, count, skipped = skip_finished(photos.images, photos.count, finished)
    yield PredictStart.create(estimator, None if config.frames else count, skipped, photos.ignored)
    copies = ImageWriter.create(config.annotate, config.crops, config.inputs)
    if config.report is not None:
        copies = replace(copies, keep=replace(copies.keep, thumbnails=True))
    with ExitStack() as stack:
        check: Future[tuple[str, ...]] | None = None
        if is_checked:
            check = stack.enter_context(_start_check(estimator, photos.images))
        writers = [
            stack.enter_context(open_writer(kind, target, stdout, config.resume, columns))
            for kind, target in config.outputs.items()
        ]
        if config.report is not None:
            # The last one, because the page is resumed by the rows.
            writers.append(stack.enter_context(_open_report(config, config.report, estimator)))
        for photo in predict_images(estimator, images, photos.boxes, make_video_options(config), options, copies):
            for writer in writers:
                writer.write(photo)
            yield photo
            if check is not None and check.done():
                yield from map(PredictNotice, check.result())
                check = None
        if check is not None:
            yield from map(PredictNotice, check.result())


def _open_report(config: PredictConfig, path: Path, estimator: Estimator) -> AbstractContextManager[RowWriter]:
    """Open the page of ``--report``, with the faces of the earlier part if the prediction is resumed."""
    about = GalleryAbout(
        inputs=config.inputs or (str(config.boxes),),
        model=estimator.model.name,
        detector=estimator.detector if config.boxes is None else GIVEN,
        options=config.format_row_options(),
    )
    earlier = chain.from_iterable(read_rows(*output) for output in config.outputs.items() if config.resume)
    return open_report(path, about, earlier, config.resume)


@contextmanager
def _start_check(estimator: Estimator, images: Iterable[ImageSource]) -> Iterator[Future[tuple[str, ...]]]:
    """Check crops in a thread for the context; nothing waits for it after an interruption."""
    pool = ThreadPoolExecutor(1)
    try:
        yield pool.submit(check_crops, estimator, images)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def load_estimator(config: PredictConfig) -> Estimator:
    """Load the estimator; each parameter of :meth:`Estimator.load` is an option of the same name.

    Raises:
        AgegenError: an option is invalid, or a required file is not available.
    """
    return Estimator.load(**{name: getattr(config, name) for name in signature(Estimator.load).parameters})


def check_crops(estimator: Estimator, images: Iterable[ImageSource]) -> tuple[str, ...]:
    """Return what is wrong with the crops to process: photos, or faces of another size than the model expects.

    Images that can be read only once are not checked. Each image is estimated independently, so none is cut to match.
    Faces are first looked for only where the model expects them, which takes a tenth of the time of a search: with
    nearly all of them there, nothing is wrong.
    """
    from agegen.faces.matching import MIN_FACES, make_crop_notices, make_margin_notices, measure_crops, measure_expected

    paths = [image for image in images if isinstance(image, str)] if isinstance(images, list) else []
    if len(paths) < MIN_FACES:
        return ()
    sample = random.Random(0).sample(paths, min(len(paths), _SAMPLED_CROPS))
    wanted = estimator.model.template
    stats = measure_expected(_decode_readable(sample), wanted)
    if stats.sure and not (stats.scattered or make_margin_notices(stats, wanted, trimmed=False)):
        return ()
    stats = measure_crops(lambda: _decode_readable(sample), "these images")
    return (*make_crop_notices(stats), *make_margin_notices(stats, wanted, trimmed=False))


def _decode_readable(paths: Iterable[str]) -> Iterator[RGB]:
    for path in paths:
        with suppress(DataError):
            yield decode_photo(read_image_file(path), _SAMPLED_SIDE).image


def make_video_options(config: PredictConfig) -> VideoOptions:
    """Return how to process videos."""
    return VideoOptions(Sampling(config.fps, config.every_frame), config.frames)


def list_photos(
    inputs: Sequence[str], boxes_file: Path | None, stdin: BinaryIO, outputs: Sequence[Path] = ()
) -> PhotoList:
    """Return the images that the inputs name; without inputs, those that the file of known faces names.

    ``outputs`` are the folders of copies, which are no inputs where they lie inside one.

    Raises:
        AgegenError: a folder or glob contains no image, or the file of known faces cannot be read.
    """
    boxes = None if boxes_file is None else read_boxes(boxes_file)
    if STDIN in inputs:
        content = read_stdin(stdin)
        if isinstance(content, bytes):
            return PhotoList([(STDIN, content)], 1, boxes)
        return PhotoList(map(make_source, content), None, boxes)
    if not inputs and boxes is not None:
        names = boxes.list_files()
        return PhotoList(names, len(names), boxes)
    found = find_inputs(inputs, outputs)
    if not any(map(is_parquet_or_remote, found.names)):
        return PhotoList(found.names, len(found.names), boxes, found.describe_ignored())
    shards = list(list_shards(found.names))
    images = (image for shard in shards for image in read_shard(shard))
    return PhotoList(images, sum(shard.count for shard in shards), boxes, found.describe_ignored())


def skip_finished(
    images: Iterable[ImageSource], count: int | None, finished: Collection[str]
) -> tuple[Iterable[ImageSource], int | None, int]:
    """Return the images that are not finished, their number (None if it is unknown), and the number of the others.

    Names are compared by what they stand for: ``photos/a.jpg`` and ``./photos/a.jpg`` are one file.
    """
    if not finished:
        return images, count, 0
    resolved = set(map(resolve_name, finished))
    remaining = (image for image in images if resolve_name(get_name(image)) not in resolved)
    if isinstance(images, list):
        left = list(remaining)
        return left, len(left), len(images) - len(left)
    return remaining, None if count is None else max(0, count - len(finished)), len(finished)


def resolve_name(name: str) -> str:
    """Return the absolute path of a name, with the links of its folder resolved; addresses stay as they are.

    A link to a file is a separate input.
    """
    folder, file = os.path.split(name)
    return name if is_remote(name) else f"{_resolve_folder(folder, Path.cwd())}/{file}"


@lru_cache(1024)
def _resolve_folder(folder: str, current: Path) -> Path:
    return (current / folder).resolve()


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
    photos = _predict_all(estimator, images, boxes, video, copies)
    if options:
        photos = (replace(photo, options=options) for photo in photos)
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
            yield from estimator.predict_many(
                group,
                keep_images=keep.images,
                keep_crops=keep.crops,
                keep_thumbnails=keep.thumbnails,
                boxes=find_boxes,
            )


def _predict_video(
    estimator: Estimator, name: str, options: VideoOptions, copies: ImageWriter
) -> Iterator[PhotoPrediction]:
    """Yield the results for a video; its last row comes after its annotated copy was written."""
    result = yield from predict_video(estimator, name, options, copies.keep)
    final = result.final
    if (target := copies.find_video_path(name)) is not None:
        try:
            annotate_video(name, result, options.sampling, target)
        except DataError as error:
            final = add_reason(final or PhotoPrediction(name, UNREADABLE, is_video=True), str(error))
    if final is not None:
        yield final
