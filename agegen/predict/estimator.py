"""The Python interface: photographs in, faces with age and gender out."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from agegen.data.images import RGB, Photo, convert_to_rgb, decode_photo, resize_image, scale_to_8_bits
from agegen.data.labels import MAX_AGE
from agegen.engines.engine import Engine
from agegen.engines.loading import ONNX_SUFFIX, load_engine
from agegen.errors import AgegenError, DataError
from agegen.faces.alignment import AlignmentTemplate
from agegen.faces.detection import AUTO, choose_detector
from agegen.faces.geometry import DetectedFace
from agegen.files import digest_file
from agegen.machine import count_cores
from agegen.model.calibration import Calibration, bound_ages, choose_thresholds, compute_sigma, read_calibration
from agegen.model.metadata import CheckpointInfo
from agegen.model.weights import find_checkpoint
from agegen.predict.boxes import GivenFace
from agegen.predict.extraction import NOTHING, Decode, ExtractedFaces, FaceExtractor, Keep
from agegen.predict.results import (
    GIVEN,
    NO_FACE,
    OK,
    UNREADABLE,
    FaceEstimate,
    FacePrediction,
    PhotoPrediction,
    choose_gender,
)

T = TypeVar("T")
R = TypeVar("R")
# How long a thread sleeps at most before it looks whether the reader has gone.
_PATIENCE = 0.2


class Waiting:
    """Stands in a stream for: the next result is not there yet; use the time."""


WAITING = Waiting()


def stream_in_order(work: Callable[[T], R], items: Iterable[T], threads: int, ahead: int) -> Iterator[R | Waiting]:
    """Yield ``work(item)`` for each item, in order; :data:`WAITING` once wherever the next isn't ready.

    Items are drawn by a thread of their own, so that a slow source (a pipe) holds up no result; at most
    ``ahead`` of them are under way, so that memory stays flat. Whatever ``items`` or ``work`` raise comes
    out here, in its place.
    """
    futures: queue.Queue[Future[R] | None] = queue.Queue(maxsize=ahead)
    gone = threading.Event()
    with ThreadPoolExecutor(threads) as pool:
        feeder = threading.Thread(target=_feed, args=(work, items, pool, futures, gone), daemon=True)
        feeder.start()
        try:
            while True:
                future = _take_now(futures)
                if future is WAITING:
                    yield WAITING
                    future = futures.get()
                if not isinstance(future, Future):
                    return
                if not future.done():
                    yield WAITING
                yield future.result()
        finally:
            gone.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _take_now(futures: queue.Queue[Future[R] | None]) -> Future[R] | Waiting | None:
    try:
        return futures.get_nowait()
    except queue.Empty:
        return WAITING


def _feed(
    work: Callable[[T], R],
    items: Iterable[T],
    pool: ThreadPoolExecutor,
    futures: queue.Queue[Future[R] | None],
    gone: threading.Event,
) -> None:
    try:
        for item in items:
            if gone.is_set() or not _put(futures, pool.submit(work, item), gone):
                return
    except BaseException as error:
        failed: Future[R] = Future()
        failed.set_exception(error)
        _put(futures, failed, gone)
    _put(futures, None, gone)


def _put(futures: queue.Queue[Future[R] | None], future: Future[R] | None, gone: threading.Event) -> bool:
    while not gone.is_set():
        try:
            futures.put(future, timeout=_PATIENCE)
            return True
        except queue.Full:
            continue
    return False


# A batch of so many faces is as quick per face as a larger one.
BATCH_FACES = 64


class FaceModel:
    """A loaded model that estimates age and gender of aligned crops."""

    def __init__(self, info: CheckpointInfo, engine: Engine, digest: str = "", distribution: bool = False) -> None:
        """Take a loaded model; ``digest`` is the SHA-256 of its weights, ``distribution`` whether P(age) is wanted."""
        self._distribution = distribution
        self.info = info
        self.digest = digest
        self.name = " ".join(part for part in (info.model, info.version, digest[:12]) if part)
        self.engine = engine
        self.calibration = read_calibration(info.calibration)
        self.contract = AlignmentTemplate.from_json(info.crop) if info.crop else AlignmentTemplate()

    def estimate(self, crops: list[RGB]) -> list[FaceEstimate]:
        """Return estimates for aligned crops (RGB pictures of any size); a crowd is estimated in several batches."""
        estimates = []
        for start in range(0, len(crops), BATCH_FACES):
            part = crops[start : start + BATCH_FACES]
            images = np.stack([resize_image(crop, self.engine.input_size) for crop in part])
            age, spread, p_female, ages = self.engine.run(images, self._distribution)
            low, high = bound_ages(age, spread, self.calibration)
            sigma = compute_sigma(age, spread, self.calibration)
            columns = (values.tolist() for values in (age, low, high, p_female, sigma))
            kept = [None] * len(part) if ages is None else list(ages)
            estimates += [FaceEstimate(*row) for row in zip(*columns, kept, strict=True)]
        return estimates


def open_image(picture: Any, limit: int | None) -> Decode:
    """Return what gives a picture as RGB (height, width, 3), uint8, encoded ones of at most ``limit`` pixels on a side.

    Args:
        picture: encoded bytes, a binary file open for reading, a Pillow image (turned as its EXIF orientation says), or
            an array: RGB or RGBA (height, width, 3 or 4), or grey (height, width), of uint8, or deeper: then its
            values are brought to 0–255.
        limit: concerns encoded pictures alone.

    Raises:
        DataError: it is something else; the error names its type.
    """
    if hasattr(picture, "read"):
        picture = picture.read()
    if isinstance(picture, bytes | bytearray | memoryview):
        content = bytes(picture)
        return lambda enough: decode_photo(content, limit, enough)
    if isinstance(picture, Image.Image):
        photo = Photo(np.asarray(convert_to_rgb(picture)), 1.0)
        return lambda _: photo
    if isinstance(picture, np.ndarray):
        whole = Photo(_read_array(picture), 1.0)
        return lambda _: whole
    raise DataError(
        "a picture must be a path, bytes, an open file, a Pillow image or a NumPy array, not "
        f"{type(picture).__module__}.{type(picture).__qualname__}"
    )


def _read_array(array: np.ndarray) -> RGB:
    grey = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)
    coloured = array.ndim == 3 and array.shape[2] in (3, 4)
    numbers = np.issubdtype(array.dtype, np.number) and not np.issubdtype(array.dtype, np.complexfloating)
    if not (grey or coloured) or 0 in array.shape or not numbers:
        raise DataError(
            "an array must be RGB (height, width, 3), RGBA (height, width, 4) or grey (height, width), of numbers, not "
            f"{array.dtype} {array.shape}"
        )
    values = array if array.dtype == np.uint8 else scale_to_8_bits(array)
    flat = values[:, :, 0] if values.ndim == 3 and values.shape[2] == 1 else values
    return np.ascontiguousarray(convert_to_rgb(Image.fromarray(np.ascontiguousarray(flat))))


Item = TypeVar("Item")
# A path, or a name and the content of the file, or what gives it.
Content = bytes | Callable[[], bytes]
Picture = str | os.PathLike[str] | tuple[str, Content]
_BATCH_PHOTOS = 128
# Decoded photographs that wait for their estimates, where they are kept.
_BATCH_BYTES = 200_000_000
_IN_MEMORY = "picture"


@dataclass(frozen=True)
class RowBuilder:
    """Describes faces in the words of one model and detector.

    ``asked`` is the probability from which on gender is named, None as the model says; ``under`` are the ages for which
    P(age < that) was asked.
    """

    model: str
    detector: str
    calibration: Calibration
    asked: float | None = None
    under: tuple[int, ...] = ()

    def describe(self, cut: ExtractedFaces, estimates: Sequence[FaceEstimate]) -> PhotoPrediction:
        """Return what was found in a photograph, given an estimate for each of its crops."""
        status = UNREADABLE if cut.reason is not None else OK if estimates else NO_FACE
        faces = tuple(
            self._describe_face(cut, number, face, estimate)
            for number, (face, estimate) in enumerate(zip(cut.faces, estimates, strict=True), start=1)
        )
        return PhotoPrediction(
            file=cut.file,
            status=status,
            faces=faces,
            reason=cut.reason,
            image=None if cut.photo is None else cut.photo.image,
            scale=cut.scale,
            crops=cut.crops if cut.keep.any else (),
            page=cut.page,
            time=cut.time,
            detector=None if cut.reason is not None else self.detector,
            model=None if cut.reason is not None else self.model,
        )

    def _describe_face(
        self, cut: ExtractedFaces, number: int, face: DetectedFace | None, estimate: FaceEstimate
    ) -> FacePrediction:
        marks = None if face is None else (face.landmarks + 0.5) / cut.scale - 0.5
        given = face is not None and np.isnan(face.score)
        distribution = estimate.distribution
        return FacePrediction(
            file=cut.file,
            status=OK,
            face=number,
            box=None if face is None else _round_box(face, cut),
            age=round(estimate.age, 1),
            age_low=round(estimate.age_low, 1),
            age_high=round(estimate.age_high, 1),
            gender=choose_gender(estimate.p_female, self.choose_threshold(estimate.age)),
            p_female=round(estimate.p_female, 4),
            detector=GIVEN if given else self.detector,
            score=None if face is None or given else round(float(face.score), 4),
            size=None if marks is None else round(float(np.linalg.norm(marks[0] - marks[1])), 1),
            landmarks=None if marks is None else tuple((round(float(x), 1), round(float(y), 1)) for x, y in marks),
            turn=cut.turn,
            model=self.model,
            page=cut.page,
            time=None if cut.time is None else round(cut.time, 3),
            under=describe_shares(estimate, self.under),
            distribution=None if distribution is None else tuple(round(float(share), 5) for share in distribution),
        )

    def choose_threshold(self, age: float) -> float:
        """Return from which probability on a face's gender is named: as was asked for, or as the model says."""
        if self.asked is not None:
            return self.asked
        return float(choose_thresholds(np.array([age]), self.calibration)[0])


def describe_shares(estimate: FaceEstimate, ages: Sequence[int]) -> tuple[tuple[int, float], ...]:
    """Return (age, P(age of the face < that)) for each of some ages."""
    return tuple((age, round(estimate.share_under(age), 4)) for age in ages)


def _round_box(face: DetectedFace, cut: ExtractedFaces) -> tuple[int, int, int, int]:
    """Return a face's box in the file's own pixels, within its edges."""
    width, height = cut.size
    limits = (width, height, width, height)
    inside = (min(max(value, 0.0), float(limit)) for value, limit in zip(face.box, limits, strict=True))
    left, top, right, bottom = (round(value / cut.scale) for value in inside)
    return left, top, right, bottom


class Estimator:
    """Finds the faces in photographs and estimates the age and gender of each.

    Example::

        from agegen import Estimator

        for face in Estimator.load().predict("photo.jpg"):
            print(face.age, face.gender, face.box)
    """

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
            raise AgegenError(f"--under takes ages from 1 to {MAX_AGE}")
        self.cutter = FaceExtractor(detector, model.contract, model.engine.input_size, min_score, min_face)
        self.describer = RowBuilder(model.name, detector, model.calibration, min_confidence, tuple(under))

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
        """Load the weights that ship for ``model``, or those of a run or checkpoint of your own.

        Args:
            model: a backbone with weights of its own; None stands for the default one.
            run: a run folder or a ``.safetensors`` or ``.onnx`` file in its place.
            detector: ``mtcnn``, ``yunet``, ``auto`` for yunet where its file is at hand and else mtcnn, or ``none`` to
                take each picture as one aligned crop.
            min_confidence: 0.5–1, the probability from which on gender is named; None as the model says.
            device: ``auto``, ``cpu`` or ``cuda``.
            precision: ``auto``, ``fp32`` or ``bf16``.
            engine: ``onnx``, ``torch``, or ``auto`` for onnxruntime where an ONNX file lies beside the checkpoint.
            weights: which of those that ship for ``model``; None for the default ones.
            min_score: 0–1, how sure the detector must be of a face.
            min_face: the width of the smallest face to be found, in the file's pixels: it decides at which size a
                photograph is searched. None finds 24 pixels in photographs of 1000 pixels, and as much more in larger.
            distribution: whether faces have P(age) over 0–116, too.
            under: ages, for each of which faces have P(age < that).

        Raises:
            AgegenError: whatever of these can't be had.
        """
        path = find_checkpoint(model, Path(run) if run is not None else None, weights)
        info, loaded = load_engine(path, engine, device, precision, distribution)
        # An ONNX file knows the checkpoint that it was made from.
        digest = getattr(loaded, "source", "") if path.suffix == ONNX_SUFFIX else digest_file(path)
        crops = FaceModel(info, loaded, digest, distribution)
        return cls(crops, detector, min_confidence, min_score, min_face, under)

    def predict(
        self, picture: str | os.PathLike[str] | RGB | Any, boxes: Iterable[Sequence[float] | GivenFace] | None = None
    ) -> list[FacePrediction]:
        """Return the faces of one photograph, from left to right; none where none is found.

        Args:
            picture: a path, encoded bytes, an open file, a Pillow image, or an array: RGB, RGBA or grey; see
                :func:`agegen.predict.estimator.open_image`. Of a file with several pages the faces of all.
            boxes: (left, top, right, bottom) of faces that are known already, in the picture's pixels, or
                :class:`agegen.predict.boxes.GivenFace` with landmarks: then no others are looked for.

        Raises:
            DataError: it can't be read, or is something else; the error names its type.
        """
        given = None if boxes is None else [_take_box(box) for box in boxes]
        if isinstance(picture, str | os.PathLike):
            cuts = self.cutter.cut_file(os.fsdecode(picture), given=given)
        else:
            cuts = [self.cutter.cut(_IN_MEMORY, open_image(picture, self.cutter.limit), given=given)]
        if cuts[0].reason is not None:
            raise DataError(f"{cuts[0].file}: {cuts[0].reason}")
        return [face for photo in self._finish(cuts) for face in photo.faces]

    def predict_many(
        self,
        pictures: Iterable[Picture],
        *,
        keep_images: bool = False,
        keep_crops: bool = False,
        boxes: Callable[[str], Sequence[GivenFace]] | None = None,
    ) -> Iterator[PhotoPrediction]:
        """Yield one result per photograph (or page), in the order given, as they come; an unreadable one stops nothing.

        A picture is given as a path, or as a name and the bytes of a file, or what fetches them (and raises DataError
        where it can't); threads call it. Decoding and detection run in threads beside
        the inference in batches; memory doesn't grow with their number. ``keep_images`` leaves the photograph and the
        crops in each result, ``keep_crops`` the crops alone; ``boxes`` gives the faces of each file in place of a
        search.
        """
        keep = Keep(keep_images, keep_crops)

        def cut(picture: Picture) -> list[ExtractedFaces]:
            name, content = _take_picture(picture)
            return self.cutter.cut_file(name, content, keep, boxes(name) if boxes else None)

        return self._run(cut, pictures, keep)

    def predict_frames(
        self, file: str, frames: Iterable[tuple[float, RGB]], keep: Keep = NOTHING
    ) -> Iterator[PhotoPrediction]:
        """Yield one result per frame of a video, given as its time in seconds and its upright picture."""

        def cut(frame: tuple[float, RGB]) -> list[ExtractedFaces]:
            time, image = frame
            return [replace(self.cutter.cut(file, lambda _: Photo(image, 1.0), keep, upright=True), time=time)]

        return self._run(cut, frames, keep)

    def _run(
        self, cut: Callable[[Item], list[ExtractedFaces]], items: Iterable[Item], keep: Keep
    ) -> Iterator[PhotoPrediction]:
        threads = count_cores()
        # Photographs that stay wait in memory, up to 50 MB each: then no more of them than there are threads.
        ahead = threads if keep.images else 4 * threads
        batch: list[ExtractedFaces] = []
        for cuts in stream_in_order(cut, items, threads, ahead):
            if not isinstance(cuts, Waiting):
                batch.extend(cuts)
            if _is_full(batch) or isinstance(cuts, Waiting):
                yield from self._finish(batch)
                batch = []
        yield from self._finish(batch)

    def _finish(self, batch: list[ExtractedFaces]) -> list[PhotoPrediction]:
        """Estimate all faces of some photographs in one batch."""
        estimates = iter(self.model.estimate([crop for cut in batch for crop in cut.crops]))
        return [self.describer.describe(cut, [next(estimates) for _ in cut.crops]) for cut in batch]


def _take_picture(picture: Any) -> tuple[str, Content | None]:
    """Return a picture's name, and its content, or what fetches it, where that was given."""
    match picture:
        case str() | os.PathLike():
            return os.fsdecode(picture), None
        case (str(name), content) if isinstance(content, bytes) or callable(content):
            return name, content
    kind = f"{type(picture).__module__}.{type(picture).__qualname__}"
    raise DataError(f"predict_many takes paths, or names with bytes, not {kind}; see predict")


def _take_box(box: Sequence[float] | GivenFace) -> GivenFace:
    """Return a box as a given face.

    Raises:
        DataError: it is none.
    """
    if isinstance(box, GivenFace):
        return box
    try:
        left, top, right, bottom = (float(value) for value in box)
    except (TypeError, ValueError) as error:
        raise DataError(f"a box is (left, top, right, bottom), not {box!r}") from error
    if not (right > left and bottom > top):
        raise DataError(f"a box is (left, top, right, bottom), in this order, not {box!r}")
    return GivenFace((left, top, right, bottom))


def _is_full(batch: list[ExtractedFaces]) -> bool:
    """Return whether photographs make a batch: by their faces, their number, or what they take in memory."""
    held = sum(cut.photo.image.nbytes for cut in batch if cut.photo is not None)
    return sum(len(cut.crops) for cut in batch) >= BATCH_FACES or len(batch) >= _BATCH_PHOTOS or held >= _BATCH_BYTES
