"""Clusters that a random split would tear apart: near-duplicates, one person, one moment of capture."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agegen.data.labels import IDENTITY_COLUMNS
from agegen.data.splits import SHARES, number_persons

if TYPE_CHECKING:
    import pandas as pd

# UTKFace's names hold the time of capture to the millisecond: 20170116174525125.
_MOMENT = re.compile(r"_(\d{14})\d{0,3}\.")
# The mean of so many random splits is known to about a fifth of one split's own scatter.
_REPEATS = 20


@dataclass(frozen=True)
class Straddle:
    """What a random 80/10/10 split would do to clusters of a kind.

    Attributes:
        kind: ``near-duplicates``, ``capture second``, or the column that names the person.
        clusters: of at least two faces, ``faces`` in them, ``largest`` of them.
        torn: the share of these clusters, 0–1, that lie in more than one part of a random split.
        leaking: the share of all test faces, 0–1, that have a fellow in the training part.
    """

    kind: str
    clusters: int
    faces: int
    largest: int
    torn: float
    leaking: float


def list_clusters(frame: pd.DataFrame, groups: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Return the cluster number of each face (N,), by kind; -1 for a face of which it isn't known."""
    import pandas as pd

    clusters = {"near-duplicates": groups}
    for column in frame.columns:
        if str(column).lower() in IDENTITY_COLUMNS:
            clusters[str(column)] = number_persons(frame[column])
    moments = frame["path"].map(_find_moment)
    if moments.notna().mean() > 0.5:
        clusters["capture second"] = np.asarray(pd.factorize(moments)[0], dtype=np.int64)
    return clusters


def measure_straddle(kind: str, labels: NDArray[np.int64], seed: int = 0) -> Straddle:
    """Return what random splits (the mean of 20) do to clusters given as a number per face, -1 for none."""
    rng = np.random.default_rng(seed)
    known = labels >= 0
    # Faces without a cluster are one each.
    whole = np.where(known, labels, labels.max(initial=0) + 1 + np.arange(len(labels)))
    _, index = np.unique(whole, return_inverse=True)
    sizes = np.bincount(index)
    torn, leaking = [], []
    for _ in range(_REPEATS):
        part = rng.choice(len(SHARES), len(labels), p=list(SHARES.values()))
        parts = np.stack([np.bincount(index, part == number, len(sizes)) for number in range(len(SHARES))])
        multiple = (parts > 0).sum(axis=0) > 1
        torn.append(multiple[sizes > 1].mean() if (sizes > 1).any() else 0.0)
        test = part == list(SHARES).index("test")
        leaking.append((parts[0][index[test]] > 0).mean() if test.any() else 0.0)
    return Straddle(
        kind=kind,
        clusters=int((sizes > 1).sum()),
        faces=int(sizes[sizes > 1].sum()),
        largest=int(sizes.max(initial=0)),
        torn=round(float(np.mean(torn)), 4),
        leaking=round(float(np.mean(leaking)), 4),
    )


def _find_moment(path: Any) -> str | None:
    match = _MOMENT.search(str(path))
    return match[1] if match else None
