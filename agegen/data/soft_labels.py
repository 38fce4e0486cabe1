"""Read soft labels: estimates by teachers that were trained on other faces, as ``agegen train --folds`` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agegen.data.labels import AGE_CLASSES, SoftLabels
from agegen.errors import DataError, format_count

COLUMNS = ("sha256", "distribution", "p_female")
# The key of the teacher's description in the metadata of the file.
TEACHER_KEY = b"agegen-teacher"


@dataclass(frozen=True)
class DistillationTargets:
    """The soft labels of a dataset of N faces.

    Attributes:
        labels: the mean of the teachers' estimates of each face.
        known: which faces (N,) have a soft label.
        teachers: a description of the teachers, one line per file.
    """

    labels: SoftLabels
    known: NDArray[np.bool_]
    teachers: tuple[str, ...]


def read_soft_labels(paths: Sequence[str], sha256: Sequence[str]) -> DistillationTargets:
    """Read the soft labels of the faces with these checksums; the estimates of several files are averaged.

    Raises:
        DataError: a file cannot be read, does not contain soft labels, or contains none of the faces.
    """
    ages = np.zeros((len(sha256), AGE_CLASSES), dtype=np.float64)
    female, counts = np.zeros(len(sha256)), np.zeros(len(sha256))
    teachers = []
    for path in paths:
        digests, distributions, p_female, teacher = _read_file(Path(path))
        places = {digest: row for row, digest in enumerate(digests)}
        found = np.array([places.get(digest, -1) for digest in sha256])
        rows = np.flatnonzero(found >= 0)
        if not len(rows):
            raise DataError(f"{path} contains none of these faces. Does it belong to another dataset?")
        ages[rows] += distributions[found[rows]]
        female[rows] += p_female[found[rows]]
        counts[rows] += 1
        teachers.append(f"{teacher or Path(path).name}, {format_count(len(rows), 'face')}")
    known = counts > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        soft = SoftLabels((ages / counts[:, None]).astype(np.float32), (female / counts).astype(np.float32))
    return DistillationTargets(soft, known, tuple(teachers))


def _read_file(path: Path) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64], str]:
    """Return checksums (M), age distributions (M, 117) with sums of 1, P(female) (M,), and the teacher."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.is_dir():
        raise DataError(f"{path} is a folder. Give the out_of_fold.parquet in it.")
    try:
        file = pq.ParquetFile(path)
        teacher = (file.schema_arrow.metadata or {}).get(TEACHER_KEY, b"").decode("utf-8", errors="replace")
        table: Any = file.read(columns=list(COLUMNS))
        columns = [table[name].to_pylist() for name in COLUMNS]
        ages = np.array(columns[1], dtype=np.float64)
        p_female = np.array(columns[2], dtype=np.float64)
    except KeyError as error:
        raise DataError(f"{path} does not contain soft labels: it lacks the column {error}") from error
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise DataError(f"cannot read soft labels from {path}: {str(error).splitlines()[0]}") from error
    valid = ages.shape == (len(p_female), AGE_CLASSES) and np.isfinite(ages).all() and (ages >= 0).all()
    if not (valid and len(p_female) and ages.sum(axis=1).all() and ((p_female >= 0) & (p_female <= 1)).all()):
        raise DataError(
            f"{path} does not contain soft labels: expected distributions of {AGE_CLASSES} ages and P(female)"
        )
    return columns[0], ages / ages.sum(axis=1, keepdims=True), p_female, teacher
