"""Soft labels: what teachers, trained on other faces, estimate of each face; written by ``agegen train --folds``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agegen.data.labels import AGE_CLASSES, SoftLabels
from agegen.errors import DataError

COLUMNS = ("sha256", "distribution", "p_female")
# Who estimated, in the metadata of the file.
TEACHER_KEY = b"agegen-teacher"


@dataclass(frozen=True)
class DistillationTargets:
    """What files of soft labels hold for a data set of N faces.

    Attributes:
        labels: the mean of the teachers' estimates of each face.
        known: which faces (N,) any teacher estimated.
        teachers: who taught, a line for each file.
    """

    labels: SoftLabels
    known: NDArray[np.bool_]
    teachers: tuple[str, ...]


def read_soft_labels(paths: Sequence[str], sha256: Sequence[str]) -> DistillationTargets:
    """Read the estimates of the faces with these checksums; of several files the mean counts.

    Raises:
        DataError: a file isn't there, is none of soft labels, or knows none of the faces.
    """
    ages = np.zeros((len(sha256), AGE_CLASSES), dtype=np.float64)
    female, counts = np.zeros(len(sha256)), np.zeros(len(sha256))
    teachers = []
    for path in paths:
        digests, distributions, shares, teacher = _read_file(Path(path))
        places = {digest: row for row, digest in enumerate(digests)}
        found = np.array([places.get(digest, -1) for digest in sha256])
        rows = np.flatnonzero(found >= 0)
        if not len(rows):
            raise DataError(f"{path} estimates none of these faces; is it of other data?")
        ages[rows] += distributions[found[rows]]
        female[rows] += shares[found[rows]]
        counts[rows] += 1
        teachers.append(f"{teacher or Path(path).name}, {len(rows):,} faces")
    known = counts > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        soft = SoftLabels((ages / counts[:, None]).astype(np.float32), (female / counts).astype(np.float32))
    return DistillationTargets(soft, known, tuple(teachers))


def _read_file(path: Path) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64], str]:
    """Return checksums (M), distributions (M, 117), each of sum 1, P(female) (M,), and who estimated."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.is_dir():
        raise DataError(f"{path} is a folder; give the out_of_fold.parquet in it")
    try:
        file = pq.ParquetFile(path)
        teacher = (file.schema_arrow.metadata or {}).get(TEACHER_KEY, b"").decode("utf-8", errors="replace")
        table: Any = file.read(columns=list(COLUMNS))
        columns = [table[name].to_pylist() for name in COLUMNS]
        ages = np.array(columns[1], dtype=np.float64)
        shares = np.array(columns[2], dtype=np.float64)
    except KeyError as error:
        raise DataError(f"{path} holds no soft labels: it lacks the column {error}") from error
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise DataError(f"can't read soft labels from {path}: {str(error).splitlines()[0]}") from error
    sound = ages.shape == (len(shares), AGE_CLASSES) and np.isfinite(ages).all() and (ages >= 0).all()
    if not (sound and len(shares) and ages.sum(axis=1).all() and ((shares >= 0) & (shares <= 1)).all()):
        raise DataError(f"{path} holds no soft labels: distributions of 117 ages and P(female) of each face are wanted")
    return columns[0], ages / ages.sum(axis=1, keepdims=True), shares, teacher
