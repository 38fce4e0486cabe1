"""``agegen predict --parquet``: rows in Parquet shards, one for each part of the inputs, made here or by a cluster."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, BinaryIO

from agegen.errors import AgegenError
from agegen.predict.config import SHARD_PICTURES, PredictConfig, check_options, load_boxes, load_estimator
from agegen.predict.estimator import Estimator
from agegen.predict.inputs import STDIN, find_inputs, read_stdin
from agegen.predict.predict import PredictStart
from agegen.predict.shards import ShardFolder, ShardResult, describe_origin, write_shard
from agegen.predict.stores import Shard, list_shards


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
        return list_shards(content, SHARD_PICTURES)
    return list_shards(find_inputs(config.inputs).names, SHARD_PICTURES)


def describe_job(config: PredictConfig, estimator: Estimator, shards: Iterable[Shard]) -> dict[str, Any]:
    """Return what an output must have in common with the work that goes on with it."""
    digest, count = hashlib.sha256(), 0
    for shard in shards:
        digest.update(json.dumps(asdict(shard)).encode("utf-8", errors="surrogateescape"))
        count += 1
    return {**describe_origin(config, estimator), "shards": count, "inputs": digest.hexdigest()}
