"""Data sets with their crops brought to one: what training, splitting and studies begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agegen.data.loading import load_sources
from agegen.data.manifests import ReadOptions
from agegen.data.records import FaceRecords, Trim
from agegen.faces.alignment import CropContract
from agegen.faces.cropping import FaceCropper
from agegen.faces.matching import match_crops


def load_cropped(
    data: Sequence[str],
    reading: ReadOptions,
    detector: str | None,
    trims: dict[str, Trim] | None = None,
    contract: CropContract | None = None,
) -> FaceRecords:
    """Load data sets whose pictures are cropped alike.

    Args:
        data: as for :func:`agegen.data.loading.load_sources`.
        reading: how labels are read.
        detector: finds the faces, where the pictures are photographs; None for crops.
        trims: which part of the pictures to take, by source; None measures it.
        contract: of the crops that are wanted; None takes those of the first source.

    Raises:
        AgegenError: the data or the detector can't be used.
    """
    records = load_sources(data, reading)
    if detector is not None:
        return replace(records, cropper=FaceCropper(detector, contract))
    return replace(records, trims=match_crops(records, contract) if trims is None else trims)
