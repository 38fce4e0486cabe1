"""Occlusion maps: how much an estimate changes where a patch of the face is covered.

Source: Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agegen.data.images import RGB
from agegen.engines.engine import Engine

# Of the crop's side: a patch that covers an eye or the mouth, moved by a third of itself.
_PATCH, _STEP = 1 / 6, 1 / 18
# So many covered crops are estimated at once.
_BATCH = 64


class Maps(NamedTuple):
    """What an estimate rests on, by place: in years for the ``age``, in P(female) for the ``gender``, (side, side)."""

    age: NDArray[np.float64]
    gender: NDArray[np.float64]


def map_occlusion(engine: Engine, crop: RGB) -> Maps:
    """Return how much an estimate changes at each place of a crop (side, side, 3) of the engine's own size.

    Values are the mean absolute change, over all patches that cover the place. A patch has the crop's mean colour, so
    that it draws no edge of black or white that no face has.
    """
    side = crop.shape[0]
    patch, step = max(1, round(side * _PATCH)), max(1, round(side * _STEP))
    places = list(_list_places(side, patch, step))
    plain = engine.run(crop[None])
    colour = crop.reshape(-1, 3).mean(axis=0).round().astype(np.uint8)
    sums, counts = np.zeros((2, side, side)), np.zeros((side, side))
    for start in range(0, len(places), _BATCH):
        part = places[start : start + _BATCH]
        covered = np.repeat(crop[None], len(part), axis=0)
        for image, (top, left) in zip(covered, part, strict=True):
            image[top : top + patch, left : left + patch] = colour
        found = engine.run(covered)
        changes = np.abs(found.age - plain.age), np.abs(found.p_female - plain.p_female)
        for index, (top, left) in enumerate(part):
            window = slice(top, top + patch), slice(left, left + patch)
            counts[window] += 1
            for total, change in zip(sums, changes, strict=True):
                total[window] += change[index]
    return Maps(*(sums / np.maximum(counts, 1)))


def _list_places(side: int, patch: int, step: int) -> Iterator[tuple[int, int]]:
    """Yield the top left corners of all patches; the last ones end at the edges."""
    starts = [*range(0, side - patch, step), side - patch]
    for top in starts:
        yield from ((top, left) for left in starts)
