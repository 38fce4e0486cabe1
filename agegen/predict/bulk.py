"""``agegen predict --parquet``: rows in Parquet shards, one for each part of the inputs, made here or by a cluster."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from agegen.data.remote import is_remote
from agegen.errors import AgegenError
from agegen.predict.boxes import read_boxes
from agegen.predict.copies import Copies
from agegen.predict.estimator import Estimator
from agegen.predict.inputs import STDIN, find_inputs, read_stdin
from agegen.predict.predict import (
    SHARD_PICTURES,
    PredictConfig,
    PredictStart,
    check_options,
    load_estimator,
    look_at_all,
)
from agegen.predict.results import PhotoPrediction
from agegen.predict.shards import ShardFolder, tabulate_rows
from agegen.predict.stores import Shard, list_shards, read_shard


@dataclass(frozen=True)
class ShardResult:
    """A shard that is written: how many pictures it has of each status, and faces; ``reason``: why it is not."""

    number: int
    statuses: dict[str, int]
    faces: int
    reason: str | None = None


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
        from agegen.predict.cluster import run_on_cluster

        yield from run_on_cluster(config, missing)
        return
    for number, shard in missing.items():
        yield write_shard(config, estimator, folder, number, shard)


def list_inputs(config: PredictConfig, stdin: BinaryIO) -> Iterator[Shard]:
    """Yield the shards of what is given: files, folders, globs, Parquet, addresses, or a list on stdin.

    Raises:
        AgegenError: a folder or glob has no picture, or an address leads nowhere.
    """
    if STDIN in config.inputs:
        content = read_stdin(stdin)
        if isinstance(content, bytes):
            raise AgegenError("--parquet takes a list of paths on stdin, not a picture")
        return list_shards(content, SHARD_PICTURES)
    return list_shards(_expand(config.inputs), SHARD_PICTURES)


def write_shard(
    config: PredictConfig, estimator: Estimator, folder: ShardFolder, number: int, shard: Shard
) -> ShardResult:
    """Estimate a shard's pictures and write its rows, whole."""
    given = read_boxes(config.boxes) if config.boxes is not None else None
    photos = list(look_at_all(config, estimator, read_shard(shard), given, Copies(None, None, Path())))
    options = config.describe() or None
    origin = describe_origin(config, estimator)
    folder.write(number, tabulate_rows(photos, options, config.under, config.distribution, origin))
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


def describe_job(config: PredictConfig, estimator: Estimator, shards: Iterable[Shard]) -> dict[str, Any]:
    """Return what an output must have in common with the work that goes on with it."""
    digest, count = hashlib.sha256(), 0
    for shard in shards:
        digest.update(json.dumps(asdict(shard)).encode("utf-8", errors="surrogateescape"))
        count += 1
    return {**describe_origin(config, estimator), "shards": count, "inputs": digest.hexdigest()}


def _expand(inputs: Iterable[str]) -> Iterator[str]:
    for name in inputs:
        yield from [name] if is_remote(name) else find_inputs([name]).names
