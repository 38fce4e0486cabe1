"""The Python interface: photographs in, faces with age and gender out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from agegen.data.images import RGB, Photo
from agegen.data.labels import MAX_AGE
from agegen.engines.loading import ONNX_SUFFIX, load_engine
from agegen.errors import AgegenError, DataError
from agegen.faces.detectors import AUTO, choose_detector
from agegen.files import digest_file
from agegen.machine import count_cores
from agegen.model.weights import find_checkpoint
from agegen.predict.boxes import GivenFace
from agegen.predict.crop_model import BATCH_FACES, CropModel
from agegen.predict.cutting import NOTHING, Cut, FaceCutter, Keep
from agegen.predict.describing import Describer
from agegen.predict.pictures import open_picture
from agegen.predict.results import FacePrediction, PhotoPrediction
from agegen.predict.stream import Waiting, stream_in_order

T = TypeVar("T")
# A path, or a name and the content of the file, or what gives it.
Content = bytes | Callable[[], bytes]
Picture = str | os.PathLike[str] | tuple[str, Content]
_BATCH_PHOTOS = 128
# Decoded photographs that wait for their estimates, where they are kept.
_BATCH_BYTES = 200_000_000
_IN_MEMORY = "picture"


class Estimator:
    """Finds the faces in photographs and estimates the age and gender of each.

    Example::

        from agegen import Estimator

        for face in Estimator.load().predict("photo.jpg"):
            print(face.age, face.gender, face.box)
    """

    def __init__(
        self,
        model: CropModel,
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
        self.cutter = FaceCutter(detector, model.contract, model.engine.input_size, min_score, min_face)
        self.describer = Describer(model.name, detector, model.calibration, min_confidence, tuple(under))

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
        crops = CropModel(info, loaded, digest, distribution)
        return cls(crops, detector, min_confidence, min_score, min_face, under)

    def predict(
        self, picture: str | os.PathLike[str] | RGB | Any, boxes: Iterable[Sequence[float] | GivenFace] | None = None
    ) -> list[FacePrediction]:
        """Return the faces of one photograph, from left to right; none where none is found.

        Args:
            picture: a path, encoded bytes, an open file, a Pillow image, or an array: RGB, RGBA or grey; see
                :func:`agegen.predict.pictures.open_picture`. Of a file with several pages the faces of all.
            boxes: (left, top, right, bottom) of faces that are known already, in the picture's pixels, or
                :class:`agegen.predict.boxes.GivenFace` with landmarks: then no others are looked for.

        Raises:
            DataError: it can't be read, or is something else; the error names its type.
        """
        given = None if boxes is None else [_take_box(box) for box in boxes]
        if isinstance(picture, str | os.PathLike):
            cuts = self.cutter.cut_file(os.fsdecode(picture), given=given)
        else:
            cuts = [self.cutter.cut(_IN_MEMORY, open_picture(picture, self.cutter.limit), given=given)]
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

        def cut(picture: Picture) -> list[Cut]:
            name, content = _take_picture(picture)
            return self.cutter.cut_file(name, content, keep, boxes(name) if boxes else None)

        return self._run(cut, pictures, keep)

    def predict_frames(
        self, file: str, frames: Iterable[tuple[float, RGB]], keep: Keep = NOTHING
    ) -> Iterator[PhotoPrediction]:
        """Yield one result per frame of a video, given as its time in seconds and its upright picture."""

        def cut(frame: tuple[float, RGB]) -> list[Cut]:
            time, image = frame
            return [replace(self.cutter.cut(file, lambda _: Photo(image, 1.0), keep, upright=True), time=time)]

        return self._run(cut, frames, keep)

    def _run(self, cut: Callable[[T], list[Cut]], items: Iterable[T], keep: Keep) -> Iterator[PhotoPrediction]:
        threads = count_cores()
        # Photographs that stay wait in memory, up to 50 MB each: then no more of them than there are threads.
        ahead = threads if keep.images else 4 * threads
        batch: list[Cut] = []
        for cuts in stream_in_order(cut, items, threads, ahead):
            if not isinstance(cuts, Waiting):
                batch.extend(cuts)
            if _is_full(batch) or isinstance(cuts, Waiting):
                yield from self._finish(batch)
                batch = []
        yield from self._finish(batch)

    def _finish(self, batch: list[Cut]) -> list[PhotoPrediction]:
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


def _is_full(batch: list[Cut]) -> bool:
    """Return whether photographs make a batch: by their faces, their number, or what they take in memory."""
    held = sum(cut.photo.image.nbytes for cut in batch if cut.photo is not None)
    return sum(len(cut.crops) for cut in batch) >= BATCH_FACES or len(batch) >= _BATCH_PHOTOS or held >= _BATCH_BYTES
