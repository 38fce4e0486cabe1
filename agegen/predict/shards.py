"""Parquet shards of predictions: how one is made, its form, and the folder or address that they lie in."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from agegen.data.remote import is_remote
from agegen.errors import AgegenError
from agegen.files import write_bytes
from agegen.hub import explain_failure
from agegen.predict.boxes import GivenFaces
from agegen.predict.config import PredictConfig
from agegen.predict.estimator import Estimator
from agegen.predict.predict import run_all
from agegen.predict.results import FacePrediction, PhotoPrediction
from agegen.predict.rows import CSV_COLUMNS, SIDES, name_columns
from agegen.predict.stores import Shard, open_filesystem, read_shard

# What readers of Parquet pass over: names that begin with an underscore.
_JOB = "_job.json"
METADATA_KEY = "agegen"


@dataclass(frozen=True)
class ShardResult:
    """A shard that is written: how many pictures it has of each status, and how many faces."""

    number: int
    statuses: dict[str, int]
    faces: int


class ShardFolder:
    """Where shards lie, by their numbers; a folder here or at an address."""

    def __init__(self, place: str) -> None:
        """Take a path or an address.

        Raises:
            AgegenError: the address is of no kind that is known.
        """
        self._place = place
        self._filesystem, self._path = open_filesystem(place)

    def begin(self, job: Mapping[str, Any], resume: bool) -> set[int]:
        """Make the folder ready and return the numbers of the shards that it has already.

        Raises:
            AgegenError: it has shards and is not to be gone on with, or they are those of other work.
        """
        kept = self._read_job()
        names = self._list_shards()
        if names and not resume:
            raise AgegenError(f"{self._place} has shards already; go on with --resume, or choose another folder")
        if kept is not None and resume and kept != job:
            other = next(name for name in job if kept.get(name) != job[name])
            raise AgegenError(f"{self._place} holds other work ({other} differs); choose another folder")
        self._write(_JOB, json.dumps(job, indent=2).encode())
        return {int(name.removesuffix(".parquet").removeprefix("part-")) for name in names}

    def write(self, number: int, table: Any) -> None:
        """Write a shard, whole or not at all.

        Raises:
            AgegenError: it can't be written.
        """
        import pyarrow.parquet as pq

        stream = io.BytesIO()
        pq.write_table(table, stream)
        self._write(name_shard(number), stream.getvalue())

    def _write(self, name: str, content: bytes) -> None:
        if not is_remote(self._place):
            write_bytes(Path(self._path) / name, content)
            return
        try:
            # Object stores show what is written when it is whole.
            self._filesystem.makedirs(self._path, exist_ok=True)
            self._filesystem.pipe_file(f"{self._path}/{name}", content)
        except Exception as error:  # each kind of storage has errors of its own
            raise AgegenError(f"can't write {self._place}/{name}: {explain_failure(error)}") from error

    def _read_job(self) -> dict[str, Any] | None:
        try:
            content = json.loads(self._filesystem.cat_file(f"{self._path}/{_JOB}"))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def _list_shards(self) -> list[str]:
        try:
            found = self._filesystem.ls(self._path, detail=False, refresh=True)
        except OSError:
            return []
        names = (str(name).rpartition("/")[2] for name in found)
        return sorted(name for name in names if name.startswith("part-") and name.endswith(".parquet"))


def name_shard(number: int) -> str:
    """Return the name of a shard's file."""
    return f"part-{number:06d}.parquet"


def tabulate_rows(
    photos: Sequence[PhotoPrediction],
    under: Sequence[int],
    distribution: bool,
    origin: Mapping[str, Any],
) -> Any:
    """Return rows as an Arrow table with the columns that CSV has; ``origin`` goes into its metadata."""
    import pyarrow as pa

    names = [*CSV_COLUMNS, *name_columns(under, distribution)]
    schema = pa.schema([(name, _choose_type(name)) for name in names])
    rows = [cells for photo in photos for cells in _list_cells(photo)]
    columns = {name: [row.get(name) for row in rows] for name in names}
    return pa.table(columns, schema).replace_schema_metadata({METADATA_KEY: json.dumps(origin)})


def _list_cells(photo: PhotoPrediction) -> Iterator[dict[str, Any]]:
    for row in photo.list_rows():
        cells = asdict(row) | dict(zip(SIDES, row.box or (None,) * 4, strict=True))
        cells |= {f"under_{age}": share for age, share in row.under}
        # Arrow's text is UTF-8; names of files need not be.
        cells["file"] = row.file.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="backslashreplace")
        yield cells


def _choose_type(name: str) -> Any:
    import pyarrow as pa

    if name == "distribution":
        return pa.list_(pa.float32())
    if name in SIDES:
        return pa.int32()
    hint = get_type_hints(FacePrediction).get(name, float)
    kind = next((part for part in get_args(hint) if part is not type(None)), hint)
    return {str: pa.string(), int: pa.int32(), float: pa.float64()}[kind]


def write_shard(
    config: PredictConfig,
    estimator: Estimator,
    folder: ShardFolder,
    number: int,
    shard: Shard,
    given: GivenFaces | None = None,
) -> ShardResult:
    """Estimate a shard's pictures and write its rows, whole; ``given`` faces are not searched."""
    photos = list(run_all(config, estimator, read_shard(shard), given))
    folder.write(number, tabulate_rows(photos, config.under, config.distribution, describe_origin(config, estimator)))
    return count_photos(number, photos)


def count_photos(number: int, photos: Sequence[PhotoPrediction]) -> ShardResult:
    """Return what a shard came to."""
    return ShardResult(number, dict(Counter(photo.status for photo in photos)), sum(len(one.faces) for one in photos))


def describe_origin(config: PredictConfig, estimator: Estimator) -> dict[str, Any]:
    """Return what made the rows, for the metadata of each shard."""
    info = estimator.model.info
    return {
        "model": info.model,
        "version": info.version,
        "checkpoint": estimator.model.digest,
        "detector": estimator.detector,
        "options": config.describe(),
    }
