"""The preparation of a training: from the options to the model, the data, their split and the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from agegen.backbone import Backbone, find_feature_gap
from agegen.batches.sources import SourceOptions, scan_for
from agegen.data.duplicates import compute_fingerprints, match_fingerprints
from agegen.data.labels import Baseline, compute_baseline
from agegen.data.scan import ProgressHook, Scan
from agegen.data.soft_labels import DistillationTargets, read_soft_labels
from agegen.data.splits import (
    apply_protocol,
    apply_split,
    find_protocol,
    fingerprint_labels,
    fingerprint_split,
    read_split,
    split_scan,
    write_split,
)
from agegen.distributed import SINGLE_PROCESS, DistContext, init_distributed
from agegen.errors import AgegenError, DataError, PluginError
from agegen.faces.alignment import AlignmentTemplate
from agegen.faces.matching import LandmarkStats, load_cropped, measure_dataset, read_crop_boxes
from agegen.machine import Compute, choose_compute
from agegen.model.calibration import read_calibration
from agegen.model.checkpoint import UsedFaces, load_checkpoint, read_used_faces
from agegen.model.metadata import read_info
from agegen.model.network import AgeGenderModel
from agegen.model.weights import find_checkpoint, find_weights, parse_weights_name
from agegen.options import ReadOptions
from agegen.plugins import Plugin, build_backbone, load_backbone
from agegen.runs import RunFolder, check_unused, create_run, open_run
from agegen.train.config import TrainConfig
from agegen.train.loop import FitSettings

if TYPE_CHECKING:
    import pandas as pd

# Shares of the backbone's learning rate and epochs with --init: weights that already know faces need smaller steps
# than random ones and converge sooner.
LR_SHARE, EPOCHS_SHARE = 1 / 3, 1 / 3
# Faces that a split requires.
_MIN_FACES = {"train": 2, "val": 1, "test": 1}


@dataclass(frozen=True)
class TrainingContext:
    """What the steps of one training share.

    Attributes:
        plugin: of the backbone.
        settings: how to train.
        options: how to make batches.
        model: to train, on its device.
        scan: of all images.
        split: a row for each image of the scan.
        run: the run folder.
        baseline: the trivial estimate for the training split.
        landmarks: where the faces are in a sample of the images.
        used_faces: what the checkpoint will remember of the faces.
        start: the checkpoint to start from (``--init``); None for new weights.
        seen: how many validation and test faces the training of ``start`` saw; empty if unknown.
        resumed: whether the training was begun earlier.
        distillation: the soft labels of the images of ``scan``.
    """

    plugin: Plugin
    settings: FitSettings
    options: SourceOptions
    model: AgeGenderModel
    scan: Scan
    split: pd.DataFrame
    run: RunFolder
    baseline: Baseline
    landmarks: LandmarkStats
    used_faces: UsedFaces
    start: Path | None = None
    seen: dict[str, int] = field(default_factory=dict)
    distillation: DistillationTargets | None = None
    resumed: bool = False


def prepare_training(config: TrainConfig, on_progress: ProgressHook) -> TrainingContext:
    """Build the model, load and split the data, and create the run folder or find the one to resume.

    Raises:
        AgegenError: an option is invalid, or the data, the weights or the run folder cannot be used.
    """
    if config.protocol is not None and config.split_file is not None:
        raise AgegenError("--protocol defines the split; leave --split-file out")
    compute = choose_compute(config.device, config.precision)
    dist = init_distributed(compute.device)
    if config.resume is None and (out := config.out) is not None:
        # Once more when the folder is locked; here, so that nobody waits for the data first.
        dist.run_on_main(lambda: check_unused(out))
    plugin, backbone_class = load_backbone(config.model)
    torch.manual_seed(config.seed)
    backbone = make_backbone(plugin, backbone_class, config.pretrained, config.image_size, config.freeze)
    settings, options = choose_settings(config, backbone, compute, dist)
    model = AgeGenderModel(backbone)
    resumed = None if config.resume is None else open_run(config.resume)
    start, earlier = find_start(config, plugin.name, resumed)
    if start is not None and not (resumed and resumed.has_state):
        load_weights(model, start)
    model.to(compute.device)

    scan = _scan_data(config, backbone, resumed, on_progress)
    if resumed is None:
        scan, split = split_data(scan, config.seed, config.protocol, config.split_file)
    else:
        scan, split = apply_split(scan, read_split(resumed.split), "the run's split.csv")
        check_unchanged(resumed, split, plugin, settings, options)
        check_labels(resumed, scan)
    distillation = read_distillation(config.soft_labels, scan.sha256, split) if config.soft_labels else None
    landmarks = measure_dataset(scan.records)
    # Created last, so that a start that fails leaves no folder.
    run = resumed or dist.run_on_main(lambda: create_run(config.out, plugin.name))
    return TrainingContext(
        plugin=plugin,
        settings=settings,
        options=options,
        model=model,
        scan=scan,
        split=split,
        run=run,
        baseline=compute_baseline(scan.records.frame[(split["split"] == "train").to_numpy()]),
        landmarks=landmarks,
        start=start,
        seen=_read_seen(resumed) if resumed else count_seen(earlier, split, scan.hashes),
        resumed=resumed is not None,
        used_faces=collect_used_faces(split, scan.hashes, earlier),
        distillation=distillation,
    )


def sees_ages(training: TrainingContext) -> bool:
    """Return whether a training, or that of the weights that it starts from, has labels of ages."""
    labels = training.scan.records.labels.pick((training.split["split"] == "train").to_numpy())
    if training.distillation is not None or (labels.exact | labels.bracketed).any():
        return True
    start = training.start
    return start is not None and start.is_file() and read_calibration(read_info(start).calibration).knows_age


def make_backbone(
    plugin: Plugin, backbone_class: type[Backbone], pretrained: bool, image_size: int | None, freeze: bool | None
) -> Backbone:
    """Build the backbone; None leaves an option to it.

    Raises:
        PluginError: it cannot be built with these options, or its features have another shape than it declares.
    """
    if (backbone_class.frozen or freeze) and not pretrained:
        raise PluginError(f"backbone '{plugin.name}' is frozen and requires pretrained weights; remove --no-pretrained")
    options = {"image_size": image_size, "freeze": freeze}
    chosen = {name: value for name, value in options.items() if value is not None}
    # Built with its own weights even if --init or --resume replaces them: its defaults may depend on having them.
    backbone = build_backbone(plugin, backbone_class, pretrained=pretrained, options=chosen)
    if gap := find_feature_gap(backbone):
        raise PluginError(f"backbone '{plugin.name}' of {plugin.source}: {gap}")
    return backbone


def choose_settings(
    config: TrainConfig, backbone: Backbone, compute: Compute, dist: DistContext = SINGLE_PROCESS
) -> tuple[FitSettings, SourceOptions]:
    """Return the settings of a training: the options, and the backbone's defaults where no option was given.

    Raises:
        AgegenError: an option has an invalid value.
    """
    defaults = backbone.defaults
    lr_share, epochs_share = (1.0, 1.0) if config.init is None else (LR_SHARE, EPOCHS_SHARE)
    epochs = max(1, round(defaults.epochs * epochs_share)) if config.epochs is None else config.epochs
    lr = defaults.lr * lr_share if config.lr is None else config.lr
    batch_size = defaults.batch_size if config.batch_size is None else config.batch_size
    balance = defaults.age_balance if config.age_balance is None else config.age_balance
    loss = defaults.loss if config.soft_weight is None else replace(defaults.loss, soft=config.soft_weight)
    _check_settings(epochs, batch_size, lr, balance, loss.soft, dist.world_size)
    settings = FitSettings(
        epochs,
        lr,
        defaults.weight_decay,
        defaults.warmup,
        defaults.ema_decay,
        defaults.layer_decay,
        loss,
        defaults.lr * lr_share,
    )
    options = SourceOptions(
        compute=compute,
        batch_size=batch_size,
        seed=config.seed,
        workers=config.workers,
        views=defaults.views,
        cache_dir=config.cache_dir,
        age_balance=balance,
        dist=dist,
        augment=config.augment,
    )
    return settings, options


def _check_settings(
    epochs: int, batch_size: int, lr: float, balance: float, soft_weight: float, processes: int
) -> None:
    if epochs < 1 or batch_size < 2 or not 0 < lr < float("inf"):
        raise AgegenError("--epochs must be at least 1, --batch-size at least 2 and --lr above 0")
    if batch_size < 2 * processes:
        raise AgegenError(
            f"--batch-size {batch_size} is too small for {processes} processes: each requires at least 2 faces"
        )
    if not 0 <= balance <= 1:
        raise AgegenError("--age-balance must be between 0 (the data as they are) and 1")
    if not 0 <= soft_weight <= 1:
        raise AgegenError("--soft-weight must be between 0 (only the labels) and 1 (only the teachers)")


def find_init(init: str, model: str) -> Path:
    """Return the checkpoint that ``--init`` names: a run, a file, or bundled weights as ``NAME[/WEIGHTS]``.

    Raises:
        AgegenError: there is none, or it belongs to another backbone.
    """
    bundled = parse_weights_name(init)
    checkpoint = find_weights(*bundled) if bundled else find_checkpoint(None, Path(init))
    made_by = read_info(checkpoint).model
    if made_by != model:
        raise AgegenError(f"--init {init} has weights of '{made_by}', which do not fit --model {model}")
    return checkpoint


def find_start(config: TrainConfig, model: str, resumed: RunFolder | None) -> tuple[Path | None, UsedFaces | None]:
    """Return the checkpoint that a training starts from, and the faces that it remembers.

    A resumed training has both in its own folder as soon as an epoch is finished; the weights that it started from may
    be gone then.

    Raises:
        AgegenError: there is none, or it belongs to another backbone.
    """
    if config.init is None:
        return None, None
    if resumed is not None and resumed.checkpoint.is_file() and resumed.has_state:
        recorded = resumed.read().get("start") or {}
        return Path(recorded.get("checkpoint", config.init)), read_used_faces(resumed.checkpoint)
    start = find_init(config.init, model)
    return start, read_used_faces(start)


def _read_seen(run: RunFolder) -> dict[str, int]:
    return dict((run.read().get("start") or {}).get("seen", {}))


def load_weights(model: AgeGenderModel, checkpoint: Path) -> None:
    """Load the weights of a checkpoint into a model.

    Raises:
        CheckpointError: they do not fit.
    """
    _, loaded = load_checkpoint(checkpoint)
    model.load_state_dict(loaded.state_dict())


def count_seen(used: UsedFaces | None, split: pd.DataFrame, hashes: NDArray[np.bool_]) -> dict[str, int]:
    """Return how many validation and test faces an earlier training was fitted to; empty if it is unknown."""
    if used is None:
        return {}
    seen = match_fingerprints(compute_fingerprints(hashes), used.train)
    return {name: int(seen[(split["split"] == name).to_numpy()].sum()) for name in ("val", "test")}


def collect_used_faces(split: pd.DataFrame, hashes: NDArray[np.bool_], earlier: UsedFaces | None) -> UsedFaces:
    """Return the faces that a training uses, with those of the ``earlier`` one that it starts from."""
    fingerprints = compute_fingerprints(hashes)
    train, val = (fingerprints[(split["split"] == name).to_numpy()] for name in UsedFaces._fields)
    if earlier is None:
        return UsedFaces(train, val)
    return UsedFaces(np.concatenate([train, earlier.train]), np.concatenate([val, earlier.val]))


def _scan_data(config: TrainConfig, backbone: Backbone, resumed: RunFolder | None, on_progress: ProgressHook) -> Scan:
    """Load and scan the data; a resumed run crops its images as before."""
    reading = ReadOptions(config.age_column, config.gender_codes)
    trims = None if resumed is None else read_crop_boxes(resumed.read()["data"].get("trims", {}))
    contract = None if backbone.crop is None else AlignmentTemplate(backbone.crop)
    records = load_cropped(config.data, reading, config.detector, trims, contract)
    return scan_for(backbone, records, on_progress)


def split_data(scan: Scan, seed: int, protocol: str | None, split_file: Path | None) -> tuple[Scan, pd.DataFrame]:
    """Return the images to use and their split: by a protocol, by ``--split-file``, or a new one.

    Raises:
        DataError: the split file does not fit the data, or a split has too few faces.
    """
    if protocol is not None:
        published = find_protocol(protocol)
        scan = apply_protocol(scan, published)
        split = split_scan(scan, seed, published.shares)
    elif split_file is not None:
        scan, split = apply_split(scan, read_split(split_file), str(split_file))
    else:
        split = split_scan(scan, seed)
    for name, least in _MIN_FACES.items():
        count = int((split["split"] == name).sum())
        if count < least:
            has_column = "split" in scan.records.frame.columns
            raise DataError(_explain_empty(name, count, len(split), split_file, has_column))
    return scan, split


def _explain_empty(name: str, count: int, total: int, split_file: Path | None, has_column: bool) -> str:
    if split_file is not None:
        return f"{split_file} has {count} faces in the split '{name}'; training requires train, val and test"
    if has_column:
        return (
            f"the column 'split' has no {name} row ({count} of {total} faces): training requires train, val and test. "
            "Add some, or remove the column to let agegen split the data."
        )
    return f"the split '{name}' has {count} of {total} faces: the dataset is too small"


def check_unchanged(
    run: RunFolder, split: pd.DataFrame, plugin: Plugin, settings: FitSettings, options: SourceOptions
) -> None:
    """Check that a run resumes with the model, data and settings that it began with.

    Otherwise its saved position would refer to other batches.

    Raises:
        AgegenError: something has changed.
    """
    record = run.read()
    data, before, version = record["data"], record["settings"], record["plugin"]
    pairs = (
        ("the model", record["model"], plugin.name),
        ("the number of faces", data["faces"], len(split)),
        ("the fingerprint of the data", data["fingerprint"], fingerprint_split(split)),
        (f"the plugin {plugin.name}", f"{version['distribution']} {version['version']}", plugin.source),
        ("the number of views", before["views"], options.views),
        ("device and precision", before["compute"], str(options.compute)),
        *((name, before.get(name), value) for name, value in list_plugin_settings(settings).items()),
    )
    for what, then, now in pairs:
        if then != now:
            raise AgegenError(
                f"cannot resume {run.path}: {what} was {then} and is now {now}; restore it, or start a new training"
            )


def check_labels(run: RunFolder, scan: Scan) -> None:
    """Check that the labels are those that a run began with; runs of earlier versions do not record them.

    Raises:
        AgegenError: a label has changed.
    """
    recorded = run.read()["data"].get("labels")
    if recorded is not None and recorded != fingerprint_labels(scan):
        raise AgegenError(
            f"cannot resume {run.path}: ages or genders of its faces have changed since it began; restore the labels, "
            "or start a new training"
        )


def list_plugin_settings(settings: FitSettings) -> dict[str, Any]:
    """Return the settings that a plugin decides, in the form that JSON gives back."""
    values = asdict(settings)
    return {name: values[name] for name in ("weight_decay", "warmup", "ema_decay", "layer_decay", "loss")}


def read_distillation(paths: Sequence[str], sha256: Sequence[str], split: pd.DataFrame) -> DistillationTargets:
    """Return the soft labels of images with these checksums.

    Raises:
        DataError: a file cannot be used, or the teachers saw validation or test faces of this split.
    """
    distillation = read_soft_labels(paths, sha256)
    held_out = split["split"].isin(("val", "test")).to_numpy()
    if leaked := int((distillation.known & held_out).sum()):
        raise DataError(
            f"--soft-labels: the teachers saw {leaked:,} validation or test faces of this training (data leakage); "
            "create soft labels with --folds and --split-file set to the split.csv of this training"
        )
    return distillation


def start_run(run: RunFolder, split: pd.DataFrame) -> None:
    """Write the split of a new run into its folder, which this process has locked.

    Raises:
        AgegenError: another training has used the folder meanwhile.
    """
    check_unused(run.path)
    write_split(run.split, split)
