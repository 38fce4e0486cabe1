"""Calibration by the estimated age: intervals that hold in every band of ages, genders named where they can be."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Knots = tuple[tuple[float, float], ...]

# Bands of estimated ages in years; childhood, where faces change fastest, is told apart more finely.
EDGES = (0, 3, 10, 20, 30, 40, 50, 60, 70, 80, 117)
# The middles, between which scales are interpolated; of the last band, where most of its faces are.
MIDDLES = tuple((low + high) / 2 for low, high in pairwise(EDGES[:-1])) + (85.0,)
# A band's scale is drawn towards that of all faces as if so many of them lay in it: of 100 faces the 90th percentile is
# known to a tenth of itself.
SHRINKAGE = 30
# Of fewer faces, a 90th percentile is all but the greatest.
LEAST_FACES = 20
# Named faces, of which "97 % are right" can be told from 90 %.
LEAST_NAMED_FACES = 30


def find_quantile(scores: Floats, share: float) -> float:
    """Return the conformal quantile of n scores: the ceil((n + 1) share)-th smallest, at most the greatest."""
    rank = min(int(np.ceil((len(scores) + 1) * share)), len(scores))
    return float(np.partition(scores, rank - 1)[rank - 1])


def fit_scales(age: Floats, scores: Floats, sources: NDArray[Any] | None, share: float) -> tuple[float, Knots]:
    """Return the scale of all faces, and that at each band's middle: (age in years, scale).

    Args:
        age: estimates (n,) in years.
        scores: (n,), residuals in spreads of the model's own distributions.
        sources: the data set (n,) of each face; the scale is the greatest of what each set needs.
        share: of the scores that are to lie below the scale, 0–1.

    Mondrian conformal prediction with shrinkage, then a factor by which the whole holds as well. Source: Boström &
    Johansson, "Mondrian conformal regressors", COPA 2020.
    """
    parts = [np.ones(len(age), dtype=bool)] if sources is None else [sources == name for name in np.unique(sources)]
    # A data set of a handful of faces says nothing of its own.
    large = [part for part in parts if part.sum() >= LEAST_FACES] or [np.ones(len(age), dtype=bool)]
    fitted = [_fit_source(age[part], scores[part], share) for part in large]
    whole = max(scale for scale, _ in fitted)
    return whole, tuple(zip(MIDDLES, np.max([scales for _, scales in fitted], axis=0).tolist(), strict=True))


def _fit_source(age: Floats, scores: Floats, share: float) -> tuple[float, Floats]:
    whole = find_quantile(scores, share)
    band = find_bands(age)
    scales = np.full(len(MIDDLES), whole)
    for index in range(len(MIDDLES)):
        inside = scores[band == index]
        if len(inside) >= LEAST_FACES:
            own = find_quantile(inside, share)
            scales[index] = (len(inside) * own + SHRINKAGE * whole) / (len(inside) + SHRINKAGE)
    factor = find_quantile(scores / np.interp(age, MIDDLES, scales), share)
    # Rounded up: the faces that set a scale stay inside.
    return whole, np.ceil(scales * factor * 10_000) / 10_000


def find_bands(age: Floats) -> NDArray[np.int64]:
    """Return the index of the band (n,) in which each estimate lies."""
    found: NDArray[np.int64] = np.searchsorted(EDGES[1:-1], age, side="right")
    return found


def find_weak_bands(age: Floats, confidence: Floats, right: Bools, threshold: float, wanted: float) -> list[int]:
    """Return the bands in which genders named from a threshold on are right clearly less often than wanted."""
    from scipy.stats import binomtest

    band, named = find_bands(age), confidence >= threshold
    weak = []
    for index in range(len(MIDDLES)):
        inside = named & (band == index)
        if (count := int(inside.sum())) >= LEAST_NAMED_FACES:
            bounds = binomtest(int(right[inside].sum()), count).proportion_ci(method="wilson")
            if bounds.high < wanted:
                weak.append(index)
    return weak


def raise_threshold(confidence: Floats, right: Bools, least: float, wanted: float) -> float:
    """Return the lowest threshold from ``least`` on at which those named are right as often as wanted.

    1, which names nobody, where there is none with enough faces to tell.
    """
    order = np.argsort(-confidence, kind="stable")
    named = np.arange(1, len(order) + 1)
    accuracy = np.cumsum(right[order]) / named
    good = np.flatnonzero((accuracy >= wanted) & (named >= LEAST_NAMED_FACES) & (confidence[order] >= least))
    return float(np.floor(confidence[order[good[-1]]] * 10_000) / 10_000) if len(good) else 1.0
