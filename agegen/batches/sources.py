"""Where a model's batches come from: pictures for trainable backbones, cached features for frozen ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from agegen.backbone import Backbone
from agegen.batches.batch import EvalSource, TrainSource, compute_age_weights
from agegen.batches.cache_folder import choose_cache_dir
from agegen.batches.device import DeviceBatches, DeviceEvalBatches, fits_on_device, has_kornia
from agegen.batches.features import EvalFeatures, FeatureCache, LabelledFeatures, TrainFeatures
from agegen.batches.images import (
    EvalBatches,
    LabelledPixels,
    Pixels,
    TrainBatches,
    build_train_augmentation,
    choose_workers,
    fits_in_memory,
)
from agegen.data.labels import Labels, SoftLabels
from agegen.data.records import SOURCE_COLUMN, FaceRecords
from agegen.data.scan import ProgressHook, Scan, ignore_progress, scan_images
from agegen.distributed import SINGLE_PROCESS, DistContext
from agegen.errors import AgegenError
from agegen.machine import Compute
from agegen.model.network import AgeGenderModel

# Evaluation averages the plain and the mirrored view.
EVAL_VIEWS = 2
# Where pictures are augmented.
AUGMENT = ("auto", "loaders", "device")


@dataclass(frozen=True)
class SourceOptions:
    """How batches are made, and by which ``team``; ``views`` and ``cache_dir`` concern frozen backbones alone."""

    compute: Compute
    batch_size: int
    seed: int = 0
    workers: int | None = None
    views: int = EVAL_VIEWS
    cache_dir: Path | None = None
    age_balance: float = 0.0
    dist: DistContext = SINGLE_PROCESS
    augment: str = AUGMENT[0]


@dataclass(frozen=True)
class TrainSources:
    """What to train and on what: the whole model on pictures, or the heads on features.

    ``feature_seconds`` is what computing the cached features took, once; 0 where there are none.
    """

    network: nn.Module
    train: TrainSource
    val: EvalSource
    test: EvalSource
    feature_seconds: float = 0.0


def scan_for(backbone: Backbone, records: FaceRecords, on_progress: ProgressHook = ignore_progress) -> Scan:
    """Scan the pictures, keeping their pixels where the backbone reads them each epoch and they fit."""
    size = backbone.input_spec.size
    keep = not backbone.frozen and fits_in_memory(len(records), size)
    return scan_images(records, size if keep else None, on_progress)


def make_train_sources(
    model: AgeGenderModel,
    scan: Scan,
    splits: NDArray[np.str_],
    options: SourceOptions,
    on_progress: ProgressHook = ignore_progress,
    soft: SoftLabels | None = None,
) -> TrainSources:
    """Return the batches of each split; ``splits`` (N,) names the split of each scanned picture.

    ``soft``: what teachers estimate of the N pictures; it is learnt from, never validated or tested with.
    """
    parts = {name: np.flatnonzero(splits == name) for name in ("train", "val", "test")}
    weights = weigh_faces(scan, parts["train"], options.age_balance)
    if model.backbone.frozen:
        table = _extract(model, scan, options, on_progress)
        features = {name: _pick_features(table, rows) for name, rows in parts.items()}
        taught = replace(features["train"], labels=_teach(features["train"].labels, parts["train"], soft))
        return TrainSources(
            model.heads,
            TrainFeatures(taught, options.batch_size, options.seed, weights, options.dist),
            EvalFeatures(features["val"]),
            EvalFeatures(features["test"]),
            table.table.seconds,
        )
    pixels = {name: _pick_pixels(model, scan, rows) for name, rows in parts.items()}
    taught_pixels = replace(pixels["train"], labels=_teach(pixels["train"].labels, parts["train"], soft))
    test = EvalBatches(pixels["test"])
    if augments_on_device(model, options, len(parts["train"])):
        device = options.compute.device
        batches = DeviceBatches(taught_pixels, device, options.batch_size, options.seed, weights, options.dist)
        # Each epoch validates; the test part is read once, and may stay where it is.
        return TrainSources(model, batches, DeviceEvalBatches(pixels["val"], device), test)
    train = TrainBatches(
        taught_pixels,
        build_train_augmentation(model.backbone.input_spec, model.backbone.make_augmentation()),
        options.batch_size,
        options.seed,
        choose_workers(options.workers),
        weights,
        options.dist,
    )
    return TrainSources(model, train, EvalBatches(pixels["val"]), test)


def augments_on_device(model: AgeGenderModel, options: SourceOptions, faces: int) -> bool:
    """Return whether pictures are augmented on the device that trains: where asked for, or on a GPU that has room.

    Raises:
        AgegenError: it is asked for, and the backbone has an augmentation of its own.
    """
    own = model.backbone.make_augmentation() is not None
    if options.augment == "device":
        if own:
            raise AgegenError("--augment device: this backbone brings its own augmentation, which runs in loaders")
        return True
    fits = fits_on_device(faces, model.backbone.input_spec.size, options.compute.device)
    return options.augment == "auto" and fits and not own and has_kornia()


def _teach(labels: Labels, rows: NDArray[np.int64], soft: SoftLabels | None) -> Labels:
    return labels if soft is None else replace(labels, soft=soft.pick(rows))


def weigh_faces(scan: Scan, rows: NDArray[np.int64], age_balance: float) -> NDArray[np.float64]:
    """Return how often each face of some rows should come in an epoch, (N,), mean 1: by its age, and by its source."""
    weights = compute_age_weights(scan.records.labels.pick(rows), age_balance)
    if scan.records.weights:
        names = scan.records.frame[SOURCE_COLUMN].iloc[rows]
        weights = weights * names.map(scan.records.weights).to_numpy(dtype=float)
    return np.asarray(weights / weights.mean(), dtype=np.float64)


def make_eval_source(
    model: AgeGenderModel,
    scan: Scan,
    chosen: NDArray[np.bool_],
    options: SourceOptions,
    on_progress: ProgressHook = ignore_progress,
) -> tuple[nn.Module, EvalSource]:
    """Return the network to run and its batches over the pictures ``chosen`` (N,) of a scan."""
    if model.backbone.frozen:
        if _open_cache(model, scan, options).has_views(max(options.views, EVAL_VIEWS)):
            table = _pick_features(_extract(model, scan, options, on_progress), np.flatnonzero(chosen))
        else:
            # Where no training has left the features of all, those of the others are not needed.
            table = _extract(model, scan.select(chosen), options, on_progress)
        return model.heads, EvalFeatures(table)
    return model, EvalBatches(_pick_pixels(model, scan, np.flatnonzero(chosen)))


def choose_network(model: AgeGenderModel) -> nn.Module:
    """Return what runs on a model's batches: its heads where these are cached features, else all of it."""
    return model.heads if model.backbone.frozen else model


def share_backbone(model: AgeGenderModel, network: nn.Module) -> AgeGenderModel:
    """Return a whole model around trained heads; a network that is a whole model comes back as it is."""
    if isinstance(network, AgeGenderModel):
        return network
    shell = AgeGenderModel(model.backbone, model.head_config)
    shell.heads.load_state_dict(network.state_dict())
    return shell


def _extract(model: AgeGenderModel, scan: Scan, options: SourceOptions, on_progress: ProgressHook) -> LabelledFeatures:
    cache = _open_cache(model, scan, options)
    pixels = Pixels(scan.records, model.backbone.input_spec.size, scan.pixels)
    table = cache.load(pixels, max(options.views, EVAL_VIEWS), on_progress, options.dist)
    labels = scan.records.labels
    return LabelledFeatures(table, np.arange(len(labels)), labels)


def _open_cache(model: AgeGenderModel, scan: Scan, options: SourceOptions) -> FeatureCache:
    root = choose_cache_dir(options.cache_dir)
    return FeatureCache(root, model, scan.sha256, options.compute, scan.records.describe_crop())


def _pick_features(data: LabelledFeatures, rows: NDArray[np.int64]) -> LabelledFeatures:
    return LabelledFeatures(data.table, data.rows[rows], data.labels.pick(rows))


def _pick_pixels(model: AgeGenderModel, scan: Scan, rows: NDArray[np.int64]) -> LabelledPixels:
    pixels = Pixels(scan.records, model.backbone.input_spec.size, scan.pixels, rows)
    return LabelledPixels(pixels, scan.records.labels.pick(rows))
