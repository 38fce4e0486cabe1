"""The batches of a model: images for a backbone that is trained, cached features for a frozen one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from agegen.backbone import Backbone
from agegen.batches.batch import BatchSource, EvalSource, compute_age_weights
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
from agegen.data.labels import SPLITS, Labels, SoftLabels
from agegen.data.records import SOURCE_COLUMN, FaceRecords
from agegen.data.scan import ProgressHook, Scan, ignore_progress, scan_images
from agegen.distributed import SINGLE_PROCESS, DistContext
from agegen.errors import AgegenError
from agegen.machine import Compute
from agegen.model.network import AgeGenderModel


@dataclass(frozen=True)
class SourceOptions:
    """How to make batches; ``views`` and ``cache_dir`` concern frozen backbones only.

    ``views`` is the number of views to train on; the model itself says over how many an evaluation averages.
    """

    compute: Compute
    batch_size: int
    seed: int = 0
    workers: int | None = None
    views: int = 1
    cache_dir: Path | None = None
    age_balance: float = 0.0
    dist: DistContext = SINGLE_PROCESS
    augment: str = "auto"


@dataclass(frozen=True)
class TrainSources:
    """The network to train (the whole model on images, or its heads on features) and the batches of each split.

    Attributes:
        feature_seconds: the time it took to compute the cached features, in this run or an earlier one; 0 for images.
        notices: for the user.
    """

    network: nn.Module
    train: BatchSource
    val: EvalSource
    test: EvalSource
    feature_seconds: float = 0.0
    notices: tuple[str, ...] = ()


def scan_for(backbone: Backbone, records: FaceRecords, on_progress: ProgressHook = ignore_progress) -> Scan:
    """Scan the images; keeps their pixels if the backbone reads them in each epoch and they fit in memory."""
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
    """Return the batches of each split.

    Args:
        model: on whose images or features to train.
        scan: of N images.
        splits: the name of the split of each image (N,).
        options: how to make batches.
        on_progress: called while features are extracted.
        soft: soft labels of the N images; used in training only.
    """
    rows = {name: np.flatnonzero(splits == name) for name in SPLITS}
    weights = weigh_faces(scan, rows["train"], options.age_balance)
    if model.backbone.frozen:
        features = _extract(model, scan, options, on_progress)
        return _make_feature_sources(model, features, rows, weights, options, soft)
    return _make_image_sources(model, scan, rows, weights, options, soft)


def _make_feature_sources(
    model: AgeGenderModel,
    features: LabelledFeatures,
    rows: dict[str, NDArray[np.int64]],
    weights: NDArray[np.float64],
    options: SourceOptions,
    soft: SoftLabels | None,
) -> TrainSources:
    train, val, test = (_pick_features(features, rows[name]) for name in SPLITS)
    train = replace(train, labels=_add_soft_labels(train.labels, rows["train"], soft))
    return TrainSources(
        network=model.heads,
        train=TrainFeatures(train, options.batch_size, options.seed, weights, options.dist),
        val=EvalFeatures(val, model.views),
        test=EvalFeatures(test, model.views),
        feature_seconds=features.table.seconds,
    )


def _make_image_sources(
    model: AgeGenderModel,
    scan: Scan,
    rows: dict[str, NDArray[np.int64]],
    weights: NDArray[np.float64],
    options: SourceOptions,
    soft: SoftLabels | None,
) -> TrainSources:
    train, val, test = (_pick_pixels(model, scan, rows[name]) for name in SPLITS)
    train = replace(train, labels=_add_soft_labels(train.labels, rows["train"], soft))
    if augments_on_device(model.backbone, options.augment, options.compute, len(rows["train"])):
        device = options.compute.device
        return TrainSources(
            network=model,
            train=DeviceBatches(train, device, options.batch_size, options.seed, weights, options.dist),
            # Validation reads its images in each epoch; the test images are read once and need not be on the device.
            val=DeviceEvalBatches(val, device, model.views),
            test=EvalBatches(test, model.views),
            notices=("images are stored and augmented in the memory of the training device",),
        )
    workers = choose_workers(options.workers)
    augmentation = build_train_augmentation(model.backbone.input_spec, model.backbone.make_augmentation())
    batches = TrainBatches(train, augmentation, options.batch_size, options.seed, workers, weights, options.dist)
    limits = _list_limits(batches, workers)
    return TrainSources(model, batches, EvalBatches(val, model.views), EvalBatches(test, model.views), notices=limits)


def _list_limits(batches: TrainBatches, workers: int) -> tuple[str, ...]:
    """Return a notice if there are fewer worker processes than requested."""
    if batches.workers == workers:
        return ()
    return (
        f"shared memory (/dev/shm) has room for {batches.workers} of {workers} worker processes; for more, enlarge it "
        "(docker run --shm-size) or choose a smaller --batch-size",
    )


def augments_on_device(backbone: Backbone, augment: str, compute: Compute, faces: int) -> bool:
    """Return whether to augment images on the training device: if requested, or on a GPU that has room for them.

    Raises:
        AgegenError: it was requested, but the backbone has its own augmentation.
    """
    own = backbone.make_augmentation() is not None
    if augment == "device" and own:
        raise AgegenError("--augment device: this backbone has its own augmentation; use --augment loaders")
    if augment == "auto":
        return fits_on_device(faces, backbone.input_spec.size, compute.device) and not own and has_kornia()
    return augment == "device"


def weigh_faces(scan: Scan, rows: NDArray[np.int64], age_balance: float) -> NDArray[np.float64]:
    """Return how often to draw each face of some rows in an epoch, (N,) with mean 1, by its age and its dataset."""
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
    """Return the network to evaluate and its batches over the images ``chosen`` (N,) of a scan."""
    rows = np.flatnonzero(chosen)
    if not model.backbone.frozen:
        return model, EvalBatches(_pick_pixels(model, scan, rows), model.views)
    if _open_cache(model, scan, options).has_views(max(options.views, model.views)):
        return model.heads, EvalFeatures(_pick_features(_extract(model, scan, options, on_progress), rows), model.views)
    # No training has cached the features of all images, so only those of the chosen ones are computed.
    return model.heads, EvalFeatures(_extract(model, scan.select(chosen), options, on_progress), model.views)


def choose_network(model: AgeGenderModel) -> nn.Module:
    """Return the part of a model that runs on its batches: the heads of a frozen backbone, otherwise all of it."""
    return model.heads if model.backbone.frozen else model


def share_backbone(model: AgeGenderModel, network: nn.Module) -> AgeGenderModel:
    """Return trained heads as a whole model with the backbone of ``model``; a whole model is returned as it is."""
    if isinstance(network, AgeGenderModel):
        return network
    shell = AgeGenderModel(model.backbone, model.head_config)
    shell.views = model.views
    shell.heads.load_state_dict(network.state_dict())
    return shell


def _add_soft_labels(labels: Labels, rows: NDArray[np.int64], soft: SoftLabels | None) -> Labels:
    return labels if soft is None else replace(labels, soft=soft.pick(rows))


def _extract(model: AgeGenderModel, scan: Scan, options: SourceOptions, on_progress: ProgressHook) -> LabelledFeatures:
    cache = _open_cache(model, scan, options)
    pixels = Pixels(scan.records, model.backbone.input_spec.size, scan.pixels)
    table = cache.load(pixels, max(options.views, model.views), on_progress, options.dist)
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
