"""Shards of predictions made by a Ray cluster: it schedules, retries and holds back; each actor has one model."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agegen.errors import AgegenError
from agegen.predict.config import PredictConfig
from agegen.predict.shards import ShardResult
from agegen.predict.stores import Shard

LOCAL = "local"
# Of paths in a configuration, which travels as plain values.
_PATHS = ("run", "boxes")
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
            from agegen.predict.config import PredictConfig, load_boxes, load_estimator
            from agegen.predict.shards import ShardFolder

            # Where the machine has it: names may be relative to the folder that the command was given in.
            with suppress(OSError):
                os.chdir(options.pop("folder"))
            limit_cores(1)
            use_one_thread_each()
            paths = {name: Path(options[name]) for name in _PATHS if options[name] is not None}
            self._config = PredictConfig(**{**options, **paths})
            self._estimator, self._given = load_estimator(self._config), load_boxes(self._config)
            self._folder = ShardFolder(options["parquet"])
        except Exception as error:
            self._problem = f"a worker on {self._host} can't begin: {type(error).__name__}: {error}".splitlines()[0]

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Make a shard; return its :class:`ShardResult` as plain values."""
        number, problem = int(row["number"]), self._problem
        if problem is None:
            try:
                from agegen.predict.shards import write_shard
                from agegen.predict.stores import Shard

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
        options = {name: str(value) if name in _PATHS and value else value for name, value in asdict(config).items()}
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
