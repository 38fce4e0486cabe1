"""``agegen predict --parquet``: rows as Parquet shards, computed by this process or by the workers of a Ray cluster."""

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

from agegen.data.records import BOX_COLUMNS
from agegen.data.remote import is_remote
from agegen.errors import AgegenError
from agegen.files import write_bytes
from agegen.hub import explain_failure
from agegen.options import to_plain
from agegen.predict.annotation import ImageWriter
from agegen.predict.boxes import GivenFaces, read_boxes
from agegen.predict.config import STDIN, PredictConfig, check_options
from agegen.predict.estimator import Estimator
from agegen.predict.inputs import Shard, find_inputs, list_shards, open_filesystem, read_shard, read_stdin
from agegen.predict.predict import PredictStart, load_estimator, make_video_options, predict_images
from agegen.predict.results import FacePrediction, PhotoPrediction
from agegen.predict.rows import CSV_COLUMNS, list_extra_columns, make_cells
from agegen.predict.video import VideoOptions

# Describes the job of a folder of shards; readers of Parquet ignore names that begin with an underscore.
_JOB_FILE = "_job.json"
# The key of the origin in the metadata of each shard.
METADATA_KEY = "agegen"
# The address of a Ray cluster that is started on this machine.
LOCAL = "local"
_CONNECT_SECONDS = 10
# The maximum length of Ray's error messages, which may fill a screen.
_MAX_MESSAGE = 300


@dataclass(frozen=True)
class ShardResult:
    """A finished shard: its number, how many images it has per status, and how many faces."""

    number: int
    statuses: dict[str, int]
    faces: int


def predict_shards(config: PredictConfig, stdin: BinaryIO) -> Iterator[PredictStart | ShardResult]:
    """Predict all inputs and write Parquet shards; yields the start, then each shard when it is written.

    Each shard of the inputs becomes one of the output with the same number. So after any interruption ``--resume``
    computes the missing ones, and no image is processed twice.

    Raises:
        AgegenError: invalid combination of options, inputs without images, or an output that cannot be written.
    """
    check_options(config)
    shards = list(list_input_shards(config.inputs, stdin))
    # Workers of a cluster load their own.
    job = load_job(config)
    done = job.folder.prepare(job.describe(shards), config.resume)
    missing = {number: shard for number, shard in enumerate(shards) if number not in done}
    count = sum(shard.count for shard in missing.values())
    yield PredictStart.create(job.estimator, count, sum(shard.count for shard in shards) - count)
    if config.cluster is not None:
        yield from run_on_cluster(config, missing)
        return
    for number, shard in missing.items():
        yield job.predict_shard(number, shard)


def list_input_shards(inputs: Sequence[str], stdin: BinaryIO) -> Iterator[Shard]:
    """Yield the shards of the inputs: files, folders, globs, Parquet, addresses, or a list of paths on stdin.

    Raises:
        AgegenError: a folder or glob contains no image, or an address does not exist.
    """
    if STDIN in inputs:
        content = read_stdin(stdin)
        if isinstance(content, bytes):
            raise AgegenError("--parquet requires a list of paths on stdin, not an image")
        return list_shards(content)
    return list_shards(find_inputs(inputs).names)


@dataclass(frozen=True)
class ShardJob:
    """What is needed to compute a shard.

    Attributes:
        estimator: the loaded model and detector.
        folder: where shards are written.
        boxes: the known faces; then images are not searched.
        video: how to process videos.
        options: the column ``options``.
        extra_columns: the columns on request.
    """

    estimator: Estimator
    folder: ShardFolder
    boxes: GivenFaces | None
    video: VideoOptions
    options: str
    extra_columns: list[str]

    def predict_shard(self, number: int, shard: Shard) -> ShardResult:
        """Predict the images of a shard and write its rows, all or none of them.

        Raises:
            AgegenError: the images cannot be listed, or the shard cannot be written.
        """
        images = read_shard(shard)
        photos = list(predict_images(self.estimator, images, self.boxes, self.video, self.options, ImageWriter()))
        self.folder.write(number, make_table(photos, self.extra_columns, self.describe_origin()))
        statuses = Counter(photo.status for photo in photos)
        return ShardResult(number, dict(statuses), sum(len(photo.faces) for photo in photos))

    def describe_origin(self) -> dict[str, Any]:
        """Return what the rows were computed with, for the metadata of each shard."""
        info = self.estimator.model.info
        return {
            "model": info.model,
            "version": info.version,
            "checkpoint": self.estimator.model.digest,
            "detector": self.estimator.detector,
            "options": self.options,
        }

    def describe(self, shards: Iterable[Shard]) -> dict[str, Any]:
        """Return what must be the same to resume: the origin of the rows, and the inputs."""
        digest, count = hashlib.sha256(), 0
        for shard in shards:
            digest.update(json.dumps(asdict(shard)).encode("utf-8", errors="surrogateescape"))
            count += 1
        return {**self.describe_origin(), "shards": count, "inputs": digest.hexdigest()}


def load_job(config: PredictConfig) -> ShardJob:
    """Load what the options describe.

    Raises:
        AgegenError: an option is invalid, or a required file is not available.
    """
    assert config.parquet is not None
    return ShardJob(
        estimator=load_estimator(config),
        folder=ShardFolder(config.parquet),
        boxes=None if config.boxes is None else read_boxes(config.boxes),
        video=make_video_options(config),
        options=config.format_row_options(),
        extra_columns=list_extra_columns(config.under, config.distribution),
    )


class ShardFolder:
    """The local or remote folder of an output's shards."""

    def __init__(self, place: str) -> None:
        """Take a path or an address.

        Raises:
            AgegenError: unknown protocol.
        """
        self._place = place
        self._filesystem, self._path = open_filesystem(place)

    def prepare(self, job: Mapping[str, Any], resume: bool) -> set[int]:
        """Write the job's description and return the numbers of the shards that exist.

        Raises:
            AgegenError: there are shards but ``resume`` is false, or they belong to another job.
        """
        known = self._read_job()
        names = self._list_names()
        if names and not resume:
            raise AgegenError(f"{self._place} already contains shards. Add --resume, or choose another folder.")
        if known is not None and resume and known != job:
            different = next(name for name in job if known.get(name) != job[name])
            raise AgegenError(
                f"cannot resume {self._place}: its shards have a different {different}. Choose another folder."
            )
        self._write(_JOB_FILE, json.dumps(job, indent=2).encode())
        return {int(name.removesuffix(".parquet").removeprefix("part-")) for name in names}

    def write(self, number: int, table: Any) -> None:
        """Write a shard, completely or not at all.

        Raises:
            AgegenError: it cannot be written.
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
            # Object stores show a file only when it is complete.
            self._filesystem.makedirs(self._path, exist_ok=True)
            self._filesystem.pipe_file(f"{self._path}/{name}", content)
        except Exception as error:  # each storage raises different types
            raise AgegenError(f"cannot write {self._place}/{name}: {explain_failure(error)}") from error

    def _read_job(self) -> dict[str, Any] | None:
        try:
            content = json.loads(self._filesystem.cat_file(f"{self._path}/{_JOB_FILE}"))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def _list_names(self) -> list[str]:
        try:
            found = self._filesystem.ls(self._path, detail=False, refresh=True)
        except OSError:
            return []
        names = (str(name).rpartition("/")[2] for name in found)
        return sorted(name for name in names if name.startswith("part-") and name.endswith(".parquet"))


def name_shard(number: int) -> str:
    """Return the file name of a shard."""
    return f"part-{number:06d}.parquet"


def make_table(photos: Sequence[PhotoPrediction], extra_columns: Sequence[str], origin: Mapping[str, Any]) -> Any:
    """Return rows as an Arrow table with the columns of CSV; ``origin`` goes into its metadata."""
    import pyarrow as pa

    names = [*CSV_COLUMNS, *extra_columns]
    schema = pa.schema([(name, _choose_type(name)) for name in names])
    rows = [_make_arrow_cells(row) for photo in photos for row in photo.list_rows()]
    columns = {name: [row.get(name) for row in rows] for name in names}
    return pa.table(columns, schema).replace_schema_metadata({METADATA_KEY: json.dumps(origin)})


def _make_arrow_cells(row: FacePrediction) -> dict[str, Any]:
    # Arrow's text is UTF-8, which file names need not be.
    file = row.file.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="backslashreplace")
    return make_cells(row) | {"file": file}


def _choose_type(name: str) -> Any:
    import pyarrow as pa

    if name == "distribution":
        return pa.list_(pa.float32())
    if name in BOX_COLUMNS:
        return pa.int32()
    hint = get_type_hints(FacePrediction).get(name, float)
    kind = next((part for part in get_args(hint) if part is not type(None)), hint)
    return {str: pa.string(), int: pa.int32(), float: pa.float64()}[kind]


class ShardActor:
    """A Ray worker: loads the model once, then computes shards on one thread.

    Ray sends it by value (see :func:`_connect`), and its methods import agegen, so that it can report that agegen is
    not installed on a machine of the cluster. So nothing in it may refer to other names of this module.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        import socket

        self._host, self._problem = socket.gethostname(), None
        try:
            from agegen.machine import limit_cores, use_one_thread_each
            from agegen.options import from_plain
            from agegen.predict.config import PredictConfig
            from agegen.predict.shards import load_job

            # Paths may be relative to the folder of the command, if this machine has it.
            with suppress(OSError):
                os.chdir(options.pop("folder"))
            limit_cores(1)
            use_one_thread_each()
            self._job = load_job(PredictConfig(**from_plain(PredictConfig, options)))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            self._problem = f"a worker on {self._host} cannot start: {reason}"

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Compute a shard; return the fields of its :class:`ShardResult`, and the ``reason`` if it failed."""
        number, problem = int(row["number"]), self._problem
        if problem is None:
            try:
                from agegen.predict.inputs import Shard

                names = tuple(row["names"])
                shard = Shard(int(row["count"]), names, str(row["table"]), int(row["group"]), int(row["first"]))
                result = self._job.predict_shard(number, shard)
                return {
                    "number": number,
                    "statuses": list(result.statuses.items()),
                    "faces": result.faces,
                    "reason": "",
                }
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                problem = f"a worker on {self._host} failed: {reason}"
        return {"number": number, "statuses": [], "faces": 0, "reason": problem}


def run_on_cluster(config: PredictConfig, shards: Mapping[int, Shard]) -> Iterator[ShardResult]:
    """Yield each shard when a worker has written it; Ray replaces a worker that dies and computes its shard again.

    Raises:
        AgegenError: Ray is not installed, the cluster cannot be reached, or a worker cannot load or write.
    """
    if not shards:
        return
    ray = _connect(str(config.cluster))
    try:
        rows = [{"number": number, **asdict(shard), "names": list(shard.names)} for number, shard in shards.items()]
        workers = max(1, min(len(rows), int(ray.cluster_resources().get("CPU", 1))))
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            ShardActor,
            fn_constructor_args=[to_plain(config) | {"folder": str(Path.cwd())}],
            concurrency=workers,
            num_cpus=1,
        )
        for result in dataset.iter_rows():
            if result["reason"]:
                raise AgegenError(result["reason"])
            statuses = {str(name): int(count) for name, count in result["statuses"]}
            yield ShardResult(int(result["number"]), statuses, int(result["faces"]))
    except ray.exceptions.RayError as error:
        raise AgegenError(f"the cluster failed: {_shorten(error)}. Continue with --resume.") from error
    finally:
        ray.shutdown()


def _connect(address: str) -> Any:
    """Connect to a cluster, or start one on this machine; return the module ``ray``."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise AgegenError('--cluster requires another package: pip install "agegen[ray]"') from error
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Ray's core reports the requests of Ray Data on stderr.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    _check_reachable(address)
    try:
        options = {"include_dashboard": False} if address == LOCAL else {"address": address}
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
    except Exception as error:  # each kind of failure raises another type
        raise AgegenError(f"cannot connect to the Ray cluster at {address}: {_shorten(error)}") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray


def _check_reachable(address: str) -> None:
    """Check that HOST:PORT or ray://HOST:PORT accepts connections: Ray itself would retry for ten minutes.

    Raises:
        AgegenError: it does not.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise AgegenError(f"cannot connect to the Ray cluster at {address}: {error}") from error


def _shorten(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:_MAX_MESSAGE] if lines else type(error).__name__
