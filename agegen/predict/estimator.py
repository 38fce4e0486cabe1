"""The Python API: images in, faces with age and gender out."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from agegen.data.images import RGB, Photo, resize_image
from agegen.data.labels import MAX_AGE
from agegen.engines.engine import Engine
from agegen.engines.loading import ONNX_SUFFIX, load_engine
from agegen.errors import AgegenError, DataError
from agegen.faces.alignment import AlignmentTemplate
from agegen.faces.detection import AUTO, choose_detector
from agegen.faces.geometry import GivenFace
from agegen.files import digest_file
from agegen.machine import count_cores
from agegen.model.calibration import bound_ages, compute_sigma, read_calibration
from agegen.model.metadata import CheckpointInfo
from agegen.model.weights import find_checkpoint, is_hub_run
from agegen.predict.extraction import NO_DETECTOR, FaceExtractor, open_image
from agegen.predict.inputs import FileContent, ImageSource
from agegen.predict.results import (
    KEEP_NOTHING,
    ExtractedFaces,
    FaceEstimate,
    FacePrediction,
    KeepOptions,
    PhotoPrediction,
    RowBuilder,
)

Item = TypeVar("Item")
Result = TypeVar("Result")

# Larger batches are not faster per face.
BATCH_FACES = 64
# Images that a thread reads, decodes and estimates together, if each is a crop: larger groups are not faster, but would
# leave threads without work at the end. Photos are processed one at a time: detecting their faces takes much longer
# than all the rest.
_GROUP_CROPS = 16
_BATCH_PHOTOS = 128
# Decoded photos that wait for their estimates, if they are kept.
_BATCH_BYTES = 200_000_000
# The column `file` of an image in memory.
_IN_MEMORY = "picture"
# The types of images in memory; open files are accepted, too.
_CONTENT = (bytes, bytearray, memoryview, Image.Image, np.ndarray)
# Estimators that a process keeps of those that it received: few pools use more than one model.
_RELOADED = 2
# How often, in seconds, a blocked thread checks whether the reader has stopped.
_POLL_SECONDS = 0.2


class Estimator:
    """Detects the faces in images and estimates the age and gender of each.

    Example::

        from agegen import Estimator

        for face in Estimator.load().predict("photo.jpg"):
            print(face.age, face.gender, face.box)

    An estimator can be pickled and copied, for example for the processes of a ProcessPoolExecutor: the other process
    loads the same model with the same options, which must be available there.
    """

    # The arguments of `load`, from which a copy is loaded.
    _arguments: tuple[tuple[str, Any], ...] = ()

    def __init__(
        self,
        model: FaceModel,
        detector: str = AUTO,
        min_confidence: float | None = None,
        min_score: float = 0.0,
        min_face: float | None = None,
        under: Sequence[int] = (),
    ) -> None:
        self.model = model
        self.detector = detector = choose_detector(detector)
        self.min_confidence = model.calibration.min_confidence if min_confidence is None else min_confidence
        if not 0.5 <= self.min_confidence <= 1:
            raise AgegenError("--min-confidence must be between 0.5 and 1")
        if any(not 1 <= age <= MAX_AGE for age in under):
            raise AgegenError(f"--under requires ages from 1 to {MAX_AGE}")
        self.extractor = FaceExtractor(detector, model.template, model.engine.input_size, min_score, min_face)
        self.row_builder = RowBuilder(model.name, detector, model.calibration, min_confidence, tuple(under))

    @classmethod
    def load(
        cls,
        model: str | None = None,
        *,
        run: Path | str | None = None,
        detector: str = AUTO,
        min_confidence: float | None = None,
        device: str = "auto",
        precision: str = "auto",
        engine: str = "auto",
        weights: str | None = None,
        min_score: float = 0.0,
        min_face: float | None = None,
        distribution: bool = False,
        under: Sequence[int] = (),
    ) -> Estimator:
        """Load the bundled weights of ``model``, or a run or checkpoint of yours.

        Args:
            model: a backbone with bundled weights; None means the default one.
            run: a run folder, or a ``.safetensors`` or ``.onnx`` file, instead of ``model``.
            detector: ``mtcnn``, ``yunet``, ``auto`` (yunet if it has been downloaded, otherwise mtcnn), or ``none`` to
                process each image as one aligned crop.
            min_confidence: 0.5–1; below this probability gender is ``uncertain``. None means the model's threshold.
            device: ``auto``, ``cpu`` or ``cuda``.
            precision: ``auto`` (int8 if the model has such a file, otherwise fp32, or with torch what the hardware
                computes in), ``fp32``, ``int8``, or ``bf16`` (with torch).
            engine: ``onnx``, ``torch``, or ``auto`` (onnxruntime if there is an ONNX file next to the checkpoint).
            weights: the name of bundled weights of ``model``; None means the default ones.
            min_score: minimum detection score, 0–1.
            min_face: width of the smallest face to detect, in pixels of the file; it determines the size at which a
                photo is searched. None detects faces of 24 pixels in photos of 1000 pixels, proportionally larger ones
                in larger photos.
            distribution: include P(age) over 0–116 in each face.
            under: ages; each face includes P(age < limit) for each of them.

        Raises:
            AgegenError: an argument is invalid, or a required file is not available.
        """
        path = find_checkpoint(model, Path(run) if run is not None else None, weights)
        info, loaded = load_engine(path, engine, device, precision, distribution)
        # An ONNX file stores the digest of the checkpoint from which it was exported.
        digest = getattr(loaded, "source", "") if path.suffix == ONNX_SUFFIX else digest_file(path)
        face_model = FaceModel(info, loaded, digest, distribution)
        estimator = cls(face_model, detector, min_confidence, min_score, min_face, under)
        estimator._arguments = tuple(
            {
                "model": model,
                # Another process may have another current folder.
                "run": run if run is None or is_hub_run(Path(run)) else str(Path(run).absolute()),
                "detector": estimator.detector,
                "min_confidence": min_confidence,
                "device": device,
                "precision": precision,
                "engine": engine,
                "weights": weights,
                "min_score": min_score,
                "min_face": min_face,
                "distribution": distribution,
                "under": tuple(under),
            }.items()
        )
        return estimator

    def __reduce__(self) -> tuple[Any, ...]:
        """Describe how another process loads this estimator: networks and their sessions cannot be pickled."""
        if not self._arguments:
            raise TypeError("only estimators from Estimator.load can be pickled")
        return _load_again, (self._arguments, self.model.digest)

    def __deepcopy__(self, memo: dict[int, Any]) -> Estimator:
        """Return an estimator with a separate model."""
        return _load_again.__wrapped__(*self.__reduce__()[1])

    def predict(
        self, picture: str | os.PathLike[str] | RGB | Any, boxes: Iterable[Sequence[float] | GivenFace] | None = None
    ) -> list[FacePrediction]:
        """Return the faces of one image, in the order of their numbers; an empty list if none was detected.

        Args:
            picture: a path, the content of an image file, an open file, a Pillow image, or an array (RGB, not BGR as
                OpenCV's; RGBA or greyscale); see :func:`agegen.predict.extraction.open_image`. A file with several
                pages gives the faces of all of them.
            boxes: the known faces, as (left, top, right, bottom) in pixels of the image, or as
                :class:`agegen.predict.boxes.GivenFace` with landmarks; then the image is not searched.

        Raises:
            DataError: the image cannot be read, or an argument has the wrong type.
        """
        given = None if boxes is None else [_make_given_face(box) for box in boxes]
        extracted = self._extract(*_split_source(picture), KEEP_NOTHING, given)
        if extracted[0].reason is not None:
            raise DataError(f"{extracted[0].file}: {extracted[0].reason}")
        return [face for photo in self._estimate(extracted) for face in photo.faces]

    def predict_many(
        self,
        pictures: Iterable[ImageSource | Any],
        *,
        keep_images: bool = False,
        keep_crops: bool = False,
        keep_thumbnails: bool = False,
        boxes: Callable[[str], Sequence[GivenFace]] | None = None,
    ) -> Iterator[PhotoPrediction]:
        """Yield one result per image (or page), in the order given, as soon as it is ready.

        Unreadable images give a result with the status ``unreadable``. Each worker thread decodes images, detects their
        faces and estimates them; torch, which computes on all cores or on a GPU, estimates the faces of all threads
        together. Memory use does not depend on the number of images.

        Args:
            pictures: what :meth:`predict` takes, or pairs of a name and one of these, or of a name and a function that
                returns the content of the image file; worker threads call it, and it may raise DataError. Images in
                memory without a name are called ``picture``.
            keep_images: keep the decoded photo and the crops in each result.
            keep_crops: keep the crops in each result.
            keep_thumbnails: keep the crops as the model takes them, which are smaller.
            boxes: a function that returns the known faces of a file; then images are not searched.
        """
        keep = KeepOptions(keep_images, keep_crops, thumbnails=keep_thumbnails)

        def extract(picture: ImageSource) -> list[ExtractedFaces]:
            name, image = _split_source(picture)
            return self._extract(name, image, keep, boxes(name) if boxes else None)

        return self._run(extract, pictures, keep)

    def predict_frames(
        self, file: str, frames: Iterable[tuple[float, RGB]], keep: KeepOptions = KEEP_NOTHING
    ) -> Iterator[PhotoPrediction]:
        """Yield one result per video frame, given as its time in seconds and its upright image."""

        def extract(frame: tuple[float, RGB]) -> list[ExtractedFaces]:
            time, image = frame
            found = self.extractor.extract(file, lambda _: Photo(image, 1.0), keep, upright=True)
            return [replace(found, time=time)]

        return self._run(extract, frames, keep)

    def _extract(
        self, name: str, image: FileContent | Any, keep: KeepOptions, given: Sequence[GivenFace] | None
    ) -> list[ExtractedFaces]:
        """Extract the faces of a file, its content or an image in memory; the result says why it cannot be read."""
        if image is None or isinstance(image, bytes) or callable(image):
            return self.extractor.extract_file(name, image, keep, given)
        try:
            return [self.extractor.extract(name, open_image(image, self.extractor.limit), keep, given)]
        except DataError as error:
            return [ExtractedFaces(name, reason=str(error))]

    def _run(
        self, extract: Callable[[Item], list[ExtractedFaces]], items: Iterable[Item], keep: KeepOptions
    ) -> Iterator[PhotoPrediction]:
        """Extract and estimate in threads, each a group of items at a time."""
        threads = count_cores()
        # Kept photos take up to 50 MB each while they wait: then allow only one per thread.
        ahead = threads if keep.images else 4 * threads
        groups = group_items(items, _GROUP_CROPS if self.detector == NO_DETECTOR and not keep.full_crops else 1)
        closed = threading.Event()

        def extract_group(group: list[Item]) -> list[ExtractedFaces]:
            # After the reader has stopped, the rest of a group would only delay the end of the program.
            return [extracted for item in group if not closed.is_set() for extracted in extract(item)]

        try:
            if self.model.engine.concurrent:
                results = stream_in_order(lambda group: self._estimate(extract_group(group)), groups, threads, ahead)
                for photos in results:
                    yield from () if isinstance(photos, Waiting) else photos
            else:
                yield from self._estimate_together(stream_in_order(extract_group, groups, threads, ahead))
        finally:
            closed.set()

    def _estimate_together(self, stream: Iterator[list[ExtractedFaces] | Waiting]) -> Iterator[PhotoPrediction]:
        """Estimate whenever a batch is full or the next group is not ready."""
        batch: list[ExtractedFaces] = []
        for extracted in stream:
            if not isinstance(extracted, Waiting):
                batch.extend(extracted)
            if _is_full(batch) or isinstance(extracted, Waiting):
                yield from self._estimate(batch)
                batch = []
        yield from self._estimate(batch)

    def _estimate(self, batch: list[ExtractedFaces]) -> list[PhotoPrediction]:
        """Return the results of some photos, all their faces estimated together."""
        estimates = iter(self.model.estimate([crop for extracted in batch for crop in extracted.crops]))
        return [self.row_builder.build(extracted, [next(estimates) for _ in extracted.crops]) for extracted in batch]


class FaceModel:
    """A loaded model that estimates age and gender from aligned crops."""

    def __init__(self, info: CheckpointInfo, engine: Engine, digest: str = "", distribution: bool = False) -> None:
        """Wrap a loaded model; ``digest`` is the SHA-256 of its weights, ``distribution`` whether to return P(age)."""
        self._distribution = distribution
        self.info = info
        self.digest = digest
        # The same weights give other estimates in int8.
        int8 = "int8" if engine.precision == "int8" else ""
        self.name = " ".join(part for part in (info.model, info.version, digest[:12], int8) if part)
        self.engine = engine
        self.calibration = read_calibration(info.calibration)
        self.template = AlignmentTemplate.from_json(info.crop) if info.crop else AlignmentTemplate()

    def estimate(self, crops: list[RGB]) -> list[FaceEstimate]:
        """Return the estimates for aligned crops (RGB, any size), computed in batches of 64."""
        estimates = []
        for start in range(0, len(crops), BATCH_FACES):
            part = crops[start : start + BATCH_FACES]
            images = np.stack([resize_image(crop, self.engine.input_size) for crop in part])
            outputs = self.engine.run(images, self._distribution)
            if not outputs.finite:
                raise AgegenError(f"the model {self.name} gave NaN or infinite estimates: its weights are damaged")
            age, spread, p_female, ages = outputs
            low, high = bound_ages(age, spread, self.calibration)
            sigma = compute_sigma(age, spread, self.calibration)
            columns = (values.tolist() for values in (age, low, high, p_female, sigma))
            distributions = [None] * len(part) if ages is None else list(ages)
            estimates += [FaceEstimate(*row) for row in zip(*columns, distributions, strict=True)]
        return estimates


@lru_cache(_RELOADED)
def _load_again(arguments: tuple[tuple[str, Any], ...], digest: str) -> Estimator:
    """Load an estimator that was pickled; a process pool pickles it for each task, so it is loaded only once.

    Raises:
        AgegenError: the model is not available, or its weights are others.
    """
    estimator = Estimator.load(**dict(arguments))
    if estimator.model.digest != digest:
        raise AgegenError(f"the weights of {estimator.model.name} are not those of the estimator that was copied")
    return estimator


def _split_source(source: Any) -> tuple[str, FileContent | Any]:
    """Return the name of an image and its content; None if it is to be read from the file of this name.

    Raises:
        DataError: it is not an image; the error names its type.
    """
    match source:
        case str() | os.PathLike():
            return os.fsdecode(source), None
        case (str(name), content) if isinstance(content, _CONTENT) or hasattr(content, "read") or callable(content):
            return name, content
        case _ if isinstance(source, _CONTENT) or hasattr(source, "read"):
            return _IN_MEMORY, source
    raise DataError(
        "an image must be a path, bytes, an open file, a Pillow image or a NumPy array, or a name with one of these, "
        f"not {type(source).__module__}.{type(source).__qualname__}"
    )


def _make_given_face(box: Sequence[float] | GivenFace) -> GivenFace:
    """Return a bounding box as a given face.

    Raises:
        DataError: it is not a bounding box.
    """
    if isinstance(box, GivenFace):
        return box
    try:
        left, top, right, bottom = (float(value) for value in box)
    except (TypeError, ValueError) as error:
        raise DataError(f"invalid bounding box: {box!r}. It must be (left, top, right, bottom).") from error
    if not (right > left and bottom > top):
        raise DataError(f"invalid bounding box: {box!r}. It must be (left, top, right, bottom), in this order.")
    return GivenFace((left, top, right, bottom))


def _is_full(batch: list[ExtractedFaces]) -> bool:
    """Return whether photos fill a batch: by their faces, their number, or their memory."""
    size = sum(extracted.photo.image.nbytes for extracted in batch if extracted.photo is not None)
    faces = sum(len(extracted.crops) for extracted in batch)
    return faces >= BATCH_FACES or len(batch) >= _BATCH_PHOTOS or size >= _BATCH_BYTES


def group_items(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of at most ``size`` items, in order, without waiting for further items of a slow source (a pipe).

    Images in memory, which may be large, are each in a list of their own.
    """
    # Only the items of a list are all ready.
    parts = ([item] for item in items) if size == 1 else [items] if isinstance(items, list) else _draw(items, size)
    group: list[Item] = []
    for part in parts:
        for item in part:
            group.append(item)
            if len(group) == size or not _is_reference(item):
                yield group
                group = []
        if group:
            yield group
            group = []


def _is_reference(item: Any) -> bool:
    """Return whether an image is only named: by a path, or by the function that returns its content."""
    content = item[1] if isinstance(item, tuple) else item
    return isinstance(content, str | os.PathLike) or callable(content)


def _draw(items: Iterable[Item], most: int) -> Iterator[list[Item]]:
    """Yield the items that another thread has drawn from a source meanwhile, at most so many."""
    # Pairs: an item and no error, or at the end no item and perhaps the error of the source.
    drawn: queue.Queue[tuple[list[Item], BaseException | None]] = queue.Queue(maxsize=most)
    closed = threading.Event()

    def draw() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                if not _put(drawn, ([item], None), closed):
                    return
        except BaseException as raised:
            error = raised
        _put(drawn, ([], error), closed)

    threading.Thread(target=draw, daemon=True).start()
    try:
        while True:
            ready = [drawn.get()]
            with suppress(queue.Empty):
                while ready[-1][0] and len(ready) < most:
                    ready.append(drawn.get_nowait())
            yield [item for part, _ in ready for item in part]
            last, error = ready[-1]
            if error is not None:
                raise error
            if not last:
                return
    finally:
        closed.set()


class Waiting:
    """In a stream of results: the next one is not ready yet, so there is time for other work."""


WAITING = Waiting()


def stream_in_order(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int
) -> Iterator[Result | Waiting]:
    """Yield ``work(item)`` for each item, in order, and :data:`WAITING` once whenever the next one is not ready.

    A separate thread draws the items, so that a slow source (a pipe) delays no result. At most ``ahead`` of them are
    in progress, so that memory use is limited. Exceptions of ``items`` and ``work`` are raised here, in their place.
    """
    futures: queue.Queue[Future[Result] | None] = queue.Queue(maxsize=ahead)
    closed = threading.Event()
    with ThreadPoolExecutor(threads) as pool:
        feeder = threading.Thread(target=_feed, args=(work, items, pool, futures, closed), daemon=True)
        feeder.start()
        try:
            while True:
                future = _get_nowait(futures)
                if future is WAITING:
                    yield WAITING
                    future = futures.get()
                if not isinstance(future, Future):
                    return
                if not future.done():
                    yield WAITING
                yield future.result()
        finally:
            closed.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _get_nowait(futures: queue.Queue[Future[Result] | None]) -> Future[Result] | Waiting | None:
    try:
        return futures.get_nowait()
    except queue.Empty:
        return WAITING


def _feed(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    pool: ThreadPoolExecutor,
    futures: queue.Queue[Future[Result] | None],
    closed: threading.Event,
) -> None:
    """Submit all items, then None; an exception of the source becomes a failed future."""
    try:
        for item in items:
            if closed.is_set() or not _put(futures, pool.submit(work, item), closed):
                return
    except BaseException as error:
        failed: Future[Result] = Future()
        failed.set_exception(error)
        _put(futures, failed, closed)
    _put(futures, None, closed)


def _put(waiting: queue.Queue[Item], item: Item, closed: threading.Event) -> bool:
    """Put an item into a queue; return False if the reader stopped before there was room."""
    while not closed.is_set():
        try:
            waiting.put(item, timeout=_POLL_SECONDS)
            return True
        except queue.Full:
            continue
    return False
