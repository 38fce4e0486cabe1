"""Estimates for pictures that people give: files, folders and globs of aligned face crops."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from agegen.checkpoints import CheckpointInfo, load_checkpoint
from agegen.data.batches import make_views
from agegen.data.images import RGB, decode_image, is_image_name, read_image_file, resize_image
from agegen.devices import Compute, choose_compute
from agegen.errors import AgegenError, DataError
from agegen.evaluation import average_outputs, find_interval, run_views
from agegen.model import AgeGenderModel, expect_age

BATCH_SIZE = 64


@dataclass(frozen=True)
class FacePrediction:
    """The estimate for one face, or why there is none.

    Attributes:
        file: as it was given or found.
        status: ``ok`` or ``unreadable``.
        box: (left, top, right, bottom) of the face in pixels; None where the picture is the face.
        age: years; ``age_low`` and ``age_high`` bound the central 90 % of its distribution.
        gender: ``female`` or ``male``.
        p_female: 0–1.
        reason: why a file is unreadable.
    """

    file: str
    status: str
    box: tuple[int, int, int, int] | None = None
    age: float | None = None
    age_low: float | None = None
    age_high: float | None = None
    gender: str | None = None
    p_female: float | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the stable JSON form; ``reason`` stands only where the file is unreadable."""
        content = asdict(self)
        if self.reason is None:
            content.pop("reason")
        return content


class Predictor:
    """A loaded model that estimates age and gender of aligned face crops."""

    def __init__(self, info: CheckpointInfo, model: AgeGenderModel, compute: Compute) -> None:
        self.info = info
        self._model = model.to(compute.device).eval()
        self._compute = compute

    @classmethod
    def load(cls, checkpoint: Path, device: str = "auto", precision: str = "auto") -> Predictor:
        """Load a checkpoint; raises as :func:`agegen.checkpoints.load_checkpoint` does."""
        return cls(*load_checkpoint(checkpoint), choose_compute(device, precision))

    def predict_paths(self, paths: Iterable[Path]) -> Iterator[FacePrediction]:
        """Yield one prediction per picture, in the order given; an unreadable one never stops the rest."""
        remaining = iter(paths)
        while group := list(islice(remaining, BATCH_SIZE)):
            loaded = [(path, self._load(path)) for path in group]
            crops = [(str(path), image) for path, image in loaded if not isinstance(image, str)]
            estimates = iter(self.predict_crops(crops))
            for path, image in loaded:
                if isinstance(image, str):
                    yield FacePrediction(str(path), "unreadable", reason=image)
                else:
                    yield next(estimates)

    def predict_crops(self, crops: list[tuple[str, RGB]]) -> list[FacePrediction]:
        """Return predictions for aligned crops (name, RGB picture of any size), in one batch."""
        if not crops:
            return []
        size = self._model.backbone.input_spec.size
        views = make_views([resize_image(image, size) for _, image in crops])
        with torch.inference_mode():
            ages, p_female = average_outputs(run_views(self._model, views, self._compute))
        columns = (expect_age(ages), *find_interval(ages), p_female)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [_describe_face(name, *row) for (name, _), row in zip(crops, rows, strict=True)]

    def _load(self, path: Path) -> RGB | str:
        try:
            image = decode_image(read_image_file(path))
        except DataError as error:
            return str(error)
        # Shrunk at once, so that a batch of large photographs doesn't stay in memory.
        return resize_image(image, self._model.backbone.input_spec.size)


def find_inputs(inputs: Iterable[str]) -> Iterator[Path]:
    """Yield the files that inputs name: files as they are, folders recursively, globs expanded; sorted.

    Raises:
        AgegenError: an input names nothing.
    """
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            found = sorted(inner for inner in path.rglob("*") if is_image_name(inner) and inner.is_file())
        elif path.exists() or not glob.has_magic(name):
            found = [path]
        else:
            matches = glob.glob(name, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
            found = sorted(Path(match) for match in matches if Path(match).is_file())
        if not found:
            raise AgegenError(f"no picture in {name}")
        yield from found


def _describe_face(name: str, age: float, low: float, high: float, p_female: float) -> FacePrediction:
    return FacePrediction(
        file=name,
        status="ok",
        age=round(age, 1),
        age_low=low,
        age_high=high,
        gender="female" if p_female >= 0.5 else "male",
        p_female=round(p_female, 4),
    )
