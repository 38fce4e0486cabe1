"""Parquet shards of predictions: how one is made, its form, and the folder or address that they lie in."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import socket
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, get_args, get_type_hints

from agegen.data.remote import is_remote
from agegen.errors import AgegenError
from agegen.files import write_bytes
from agegen.hub import explain_failure
from agegen.options import to_plain
from agegen.predict.boxes import GivenFaces
from agegen.predict.config import STDIN, PredictConfig, check_options
from agegen.predict.estimator import Estimator
from agegen.predict.inputs import SHARD_IMAGES, Shard, find_inputs, list_shards, open_filesystem, read_shard, read_stdin
from agegen.predict.predict import PredictStart, load_boxes, load_estimator, run_all
from agegen.predict.results import FacePrediction, PhotoPrediction
from agegen.predict.rows import CSV_COLUMNS, SIDES, name_columns

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


LOCAL = "local"
_KNOCK_SECONDS = 10


class ShardActor:
    """A worker: loads the model once, then makes one shard after the other, on one thread.

    It travels by value and imports agegen in its methods, so that a machine that lacks it can say so.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        import socket

        self._host, self._problem = socket.gethostname(), None
        try:
            from agegen.machine import limit_cores, use_one_thread_each
            from agegen.options import from_plain
            from agegen.predict.config import PredictConfig
            from agegen.predict.predict import load_boxes, load_estimator
            from agegen.predict.shards import ShardFolder

            # Where the machine has it: names may be relative to the folder that the command was given in.
            with suppress(OSError):
                os.chdir(options.pop("folder"))
            limit_cores(1)
            use_one_thread_each()
            self._config = PredictConfig(**from_plain(PredictConfig, options))
            self._estimator, self._given = load_estimator(self._config), load_boxes(self._config)
            self._folder = ShardFolder(options["parquet"])
        except Exception as error:
            self._problem = f"a worker on {self._host} can't begin: {type(error).__name__}: {error}".splitlines()[0]

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Make a shard; return its :class:`ShardResult` as plain values."""
        number, problem = int(row["number"]), self._problem
        if problem is None:
            try:
                from agegen.predict.inputs import Shard
                from agegen.predict.shards import write_shard

                names = tuple(row["names"])
                shard = Shard(int(row["count"]), names, str(row["table"]), int(row["group"]), int(row["first"]))
                made = write_shard(self._config, self._estimator, self._folder, number, shard, self._given)
                return {"number": number, "statuses": list(made.statuses.items()), "faces": made.faces, "reason": ""}
            except Exception as error:
                problem = f"a worker on {self._host} failed: {type(error).__name__}: {error}".splitlines()[0]
        return {"number": number, "statuses": [], "faces": 0, "reason": problem}


def run_on_cluster(config: PredictConfig, shards: Mapping[int, Shard]) -> Iterator[ShardResult]:
    """Yield each shard as a worker has written it; one that dies is replaced, and its shard made anew.

    Raises:
        AgegenError: Ray isn't installed, the cluster can't be reached, or a worker can't load or write.
    """
    if not shards:
        return
    ray = _connect(str(config.cluster))
    try:
        rows = [{"number": number, **asdict(shard), "names": list(shard.names)} for number, shard in shards.items()]
        options = to_plain(config)
        options["folder"] = os.getcwd()  # noqa: PTH109 - a plain value
        workers = max(1, min(len(rows), int(ray.cluster_resources().get("CPU", 1))))
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            ShardActor,
            fn_constructor_args=[options],
            concurrency=workers,
            num_cpus=1,
        )
        for made in dataset.iter_rows():
            if made["reason"]:
                raise AgegenError(made["reason"])
            statuses = {str(name): int(count) for name, count in made["statuses"]}
            yield ShardResult(int(made["number"]), statuses, int(made["faces"]))
    except ray.exceptions.RayError as error:
        raise AgegenError(f"the cluster gave up: {_shorten(error)}; go on with --resume") from error
    finally:
        ray.shutdown()


def _connect(address: str) -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise AgegenError('--cluster needs another package: pip install "agegen[ray]"') from error
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Its core tells of what Ray Data asks of it, on stderr.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    _knock(address)
    try:
        options = {"include_dashboard": False} if address == LOCAL else {"address": address}
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
    except Exception as error:  # each way to fail has an error of its own
        raise AgegenError(f"no Ray cluster at {address}: {_shorten(error)}") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray


def _knock(address: str) -> None:
    """Try whether anyone is at HOST:PORT or ray://HOST:PORT: Ray would try for ten minutes.

    Raises:
        AgegenError: nobody is.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), _KNOCK_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise AgegenError(f"no Ray cluster at {address}: {error}") from error


def _shorten(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def predict_shards(config: PredictConfig, stdin: BinaryIO) -> Iterator[PredictStart | ShardResult]:
    """Estimate the faces in all inputs and write them as Parquet; yields the start, then each shard as it is written.

    Each shard of the inputs gives one of the output, whose name is its number; so whatever ends the work, ``--resume``
    makes the missing ones, and no input is there twice.

    Raises:
        AgegenError: options that contradict each other, inputs without a picture, an output that can't be written.
    """
    check_options(config)
    assert config.parquet is not None
    shards = list(list_inputs(config, stdin))
    # A cluster's processes load their own.
    estimator = load_estimator(config)
    folder = ShardFolder(config.parquet)
    done = folder.begin(describe_job(config, estimator, shards), config.resume)
    missing = {number: shard for number, shard in enumerate(shards) if number not in done}
    yield PredictStart(
        photos=sum(shard.count for shard in missing.values()),
        model=estimator.model.info.model,
        engine=estimator.model.engine.name,
        detector=estimator.detector,
        min_confidence=estimator.min_confidence,
        calibrated=estimator.model.calibration.faces > 0,
        skipped=sum(shard.count for shard in shards) - sum(shard.count for shard in missing.values()),
    )
    if config.cluster is not None:
        yield from run_on_cluster(config, missing)
        return
    given = load_boxes(config)
    for number, shard in missing.items():
        yield write_shard(config, estimator, folder, number, shard, given)


def list_inputs(config: PredictConfig, stdin: BinaryIO) -> Iterator[Shard]:
    """Yield the shards of what is given: files, folders, globs, Parquet, addresses, or a list on stdin.

    Raises:
        AgegenError: a folder or glob has no picture, or an address leads nowhere.
    """
    if STDIN in config.inputs:
        content = read_stdin(stdin)
        if isinstance(content, bytes):
            raise AgegenError("--parquet takes a list of paths on stdin, not a picture")
        return list_shards(content, SHARD_IMAGES)
    return list_shards(find_inputs(config.inputs).names, SHARD_IMAGES)


def describe_job(config: PredictConfig, estimator: Estimator, shards: Iterable[Shard]) -> dict[str, Any]:
    """Return what an output must have in common with the work that goes on with it."""
    digest, count = hashlib.sha256(), 0
    for shard in shards:
        digest.update(json.dumps(asdict(shard)).encode("utf-8", errors="surrogateescape"))
        count += 1
    return {**describe_origin(config, estimator), "shards": count, "inputs": digest.hexdigest()}
