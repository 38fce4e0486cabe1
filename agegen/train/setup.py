"""The set-up of a training: options, plugin, data, split, model, run folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from agegen import runs
from agegen.backbone import Backbone
from agegen.batches.sources import AUGMENT, SourceOptions, scan_for
from agegen.data.labels import Baseline, find_baseline
from agegen.data.manifests import ReadOptions
from agegen.data.scan import ProgressHook, Scan
from agegen.data.soft_labels import DistillationTargets, read_soft_labels
from agegen.data.splits import (
    apply_split,
    find_protocol,
    find_seen,
    fingerprint_split,
    keep_ages,
    read_split,
    split_scan,
    write_split,
)
from agegen.distributed import SINGLE_PROCESS, DistContext, init_distributed
from agegen.errors import AgegenError, DataError, PluginError
from agegen.faces.alignment import AlignmentTemplate
from agegen.faces.matching import LandmarkStats, load_cropped, measure_dataset, read_crop_boxes
from agegen.machine import Compute, choose_compute
from agegen.model.checkpoint import load_checkpoint
from agegen.model.metadata import read_info
from agegen.model.network import AgeGenderModel
from agegen.model.weights import find_checkpoint, find_weights, parse_shipped
from agegen.plugins import Plugin, build_backbone, load_backbone
from agegen.runs import RunFolder
from agegen.train.config import FitSettings, TrainConfig

if TYPE_CHECKING:
    import pandas as pd


def find_init(init: str, model: str) -> Path:
    """Return the checkpoint that ``--init`` names: a run, a file, or ``NAME[/WEIGHTS]`` that ship.

    Raises:
        AgegenError: there is none, or it is that of another backbone.
    """
    shipped = parse_shipped(init)
    checkpoint = find_weights(*shipped) if shipped else find_checkpoint(None, Path(init))
    made_by = read_info(checkpoint).model
    if made_by != model:
        raise AgegenError(f"--init {init} holds weights of '{made_by}', which don't fit --model {model}")
    return checkpoint


def start_from(model: AgeGenderModel, checkpoint: Path) -> None:
    """Fill a model with a checkpoint's tensors; a frozen backbone has its own already.

    Raises:
        CheckpointError: they don't fit.
    """
    _, loaded = load_checkpoint(checkpoint)
    model.load_state_dict(loaded.state_dict())


def count_seen(checkpoint: Path, split: pd.DataFrame, hashes: NDArray[np.bool_]) -> dict[str, int]:
    """Return how many faces of validation and test the earlier training saw; nothing where its run isn't at hand."""
    run = RunFolder(checkpoint.parent)
    if not run.split.is_file():
        return {}
    earlier = read_split(run.split)
    counts = {}
    for name in ("val", "test"):
        rows = np.flatnonzero(split["split"] == name)
        counts[name] = int(find_seen(earlier, list(split["sha256"].iloc[rows]), hashes[rows]).sum())
    return counts


# Weights that know faces already want to be moved less, and settle sooner, than random ones: a third of both.
RATE_SHARE, EPOCHS_SHARE = 1 / 3, 1 / 3


@dataclass(frozen=True)
class TrainingContext:
    """What the steps of one training share.

    ``start`` is the checkpoint that it begins with, None for fresh weights; ``seen`` counts the faces of validation
    and test that the training behind it saw. ``teaching`` is what soft labels say of the faces of ``scan``.
    """

    plugin: Plugin
    settings: FitSettings
    options: SourceOptions
    model: AgeGenderModel
    scan: Scan
    split: pd.DataFrame
    run: runs.RunFolder
    baseline: Baseline
    survey: LandmarkStats
    start: Path | None = None
    seen: dict[str, int] = field(default_factory=dict)
    teaching: DistillationTargets | None = None


def prepare_training(config: TrainConfig, on_progress: ProgressHook) -> TrainingContext:
    """Load the plugin and the data, build the model, split, and make the run folder or open that to resume."""
    if config.protocol is not None and config.split_file is not None:
        raise AgegenError("--protocol splits the data itself; leave --split-file out")
    compute = choose_compute(config.device, config.precision)
    dist = init_distributed(compute.device)
    plugin, backbone_class = load_backbone(config.model)
    torch.manual_seed(config.seed)
    backbone = build_wanted(config, plugin, backbone_class)
    settings, options = choose_settings(config, backbone, compute, dist)
    model = AgeGenderModel(backbone)
    start = None if config.init is None else find_init(config.init, plugin.name)
    if start is not None:
        start_from(model, start)
    model.to(compute.device)
    resumed = None if config.resume is None else runs.open_run(config.resume)
    trims = None if resumed is None else read_crop_boxes(resumed.read()["data"].get("trims", {}))
    reading = ReadOptions(config.age_column, config.gender_codes)
    contract = None if backbone.crop is None else AlignmentTemplate(backbone.crop)
    records = load_cropped(config.data, reading, config.detector, trims, contract)
    scan = scan_for(backbone, records, on_progress)
    if resumed is not None:
        run = resumed
        scan, split = apply_split(scan, read_split(run.split), "the run's split.csv")
        check_same(run, split, plugin, settings, options)
    else:
        scan, split = split_data(scan, config)
        run = dist.run_on_main(lambda: begin_run(config.out, plugin.name, split))
    train = scan.records.frame[(split["split"] == "train").to_numpy()]
    survey = measure_crops(scan)
    seen = {} if start is None else count_seen(start, split, scan.hashes)
    teaching = read_teaching(config, scan, split) if config.soft_labels else None
    baseline = find_baseline(train)
    return TrainingContext(plugin, settings, options, model, scan, split, run, baseline, survey, start, seen, teaching)


def choose_settings(
    config: TrainConfig, backbone: Backbone, compute: Compute, dist: DistContext = SINGLE_PROCESS
) -> tuple[FitSettings, SourceOptions]:
    """Return the settings, the backbone's defaults filled in where the user gave nothing.

    Raises:
        AgegenError: a number that makes no sense.
    """
    defaults = backbone.defaults
    epochs = _choose_epochs(config, defaults.epochs)
    batch_size = defaults.batch_size if config.batch_size is None else config.batch_size
    lr = _choose_rate(config, defaults.lr)
    balance = defaults.age_balance if config.age_balance is None else config.age_balance
    if epochs < 1 or batch_size < 2 or not 0 < lr < float("inf"):
        raise AgegenError("--epochs must be at least 1, --batch-size at least 2 and --lr above 0")
    if config.augment not in AUGMENT:
        raise AgegenError(f"--augment is one of {', '.join(AUGMENT)}")
    if batch_size < 2 * dist.world_size:
        raise AgegenError(
            f"--batch-size {batch_size} is too small for {dist.world_size} processes: 2 faces each at least"
        )
    if config.soft_weight is not None and not 0 <= config.soft_weight <= 1:
        raise AgegenError("--soft-weight must be between 0 (the labels alone) and 1 (the teachers alone)")
    if not 0 <= balance <= 1:
        raise AgegenError("--age-balance must be between 0 (the data as it is) and 1")
    loss = defaults.loss if config.soft_weight is None else replace(defaults.loss, soft=config.soft_weight)
    settings = FitSettings(
        epochs, lr, defaults.weight_decay, defaults.warmup, defaults.ema_decay, defaults.layer_decay, loss
    )
    options = SourceOptions(
        compute,
        batch_size,
        config.seed,
        config.workers,
        defaults.views,
        config.cache_dir,
        balance,
        dist,
        config.augment,
    )
    return settings, options


def _choose_epochs(config: TrainConfig, usual: int) -> int:
    if config.epochs is not None:
        return config.epochs
    return usual if config.init is None else max(1, round(usual * EPOCHS_SHARE))


def _choose_rate(config: TrainConfig, usual: float) -> float:
    if config.lr is not None:
        return config.lr
    return usual if config.init is None else usual * RATE_SHARE


def begin_run(out: Path | None, model: str, split: pd.DataFrame) -> runs.RunFolder:
    """Make the folder of a run, with its split."""
    run = runs.create_run(out, model)
    write_split(run.split, split)
    return run


def build_wanted(config: TrainConfig, plugin: Plugin, backbone_class: type[Backbone]) -> Backbone:
    """Build the backbone as the options want it.

    Raises:
        PluginError: it can't be built so.
    """
    options = {name: value for name in ("image_size", "freeze") if (value := getattr(config, name)) is not None}
    frozen = backbone_class.frozen or config.freeze
    if frozen and not config.pretrained:
        raise PluginError(f"backbone '{plugin.name}' is frozen: with --no-pretrained it would know nothing")
    # With its own weights even where --init and --resume fill it with others: its defaults may depend on having them.
    return build_backbone(plugin, backbone_class, pretrained=config.pretrained, options=options)


def read_teaching(config: TrainConfig, scan: Scan, split: pd.DataFrame) -> DistillationTargets:
    """Return what the teachers estimate of the faces.

    Raises:
        DataError: a file can't be used, or the teachers learnt from faces that this training is tested on.
    """
    teaching = read_soft_labels(config.soft_labels, scan.sha256)
    held = split["split"].isin(("val", "test")).to_numpy()
    if known := int((teaching.known & held).sum()):
        raise DataError(
            f"the teachers of --soft-labels saw {known:,} faces that this training validates or tests on: what they "
            "teach would flatter it; write folds of its training part alone, with --folds and this training's "
            "--split-file"
        )
    return teaching


def check_same(
    run: runs.RunFolder, split: pd.DataFrame, plugin: Plugin, settings: FitSettings, options: SourceOptions
) -> None:
    """Check that a run goes on with what it began with; else its saved position would point to other batches.

    Raises:
        AgegenError: pictures are gone or lie in another part, or the plugin, its settings or the precision differ.
    """
    record = run.read()
    kept, begun = record["settings"], record.get("plugin", {})
    pairs = (
        ("the model", record["model"], plugin.name),
        ("faces", record["data"].get("faces"), len(split)),
        ("its data's fingerprint", record["data"].get("fingerprint"), fingerprint_split(split)),
        (f"the plugin {plugin.name}", f"{begun.get('distribution')} {begun.get('version')}", plugin.source),
        ("weight decay", kept.get("weight_decay"), settings.weight_decay),
        ("views of each face", kept.get("views"), options.views),
        # Runs of before have none of these.
        *((name, kept[name], value) for name, value in list_fixed(settings).items() if name in kept),
        ("device and precision", kept.get("compute"), str(options.compute)),
    )
    for what, before, now in pairs:
        if before != now:
            said = f"{what} was {before}, and is now {now}"
            raise AgegenError(f"{run.path} can't go on as it began: {said}; restore that, or train anew")


def list_fixed(settings: FitSettings) -> dict[str, Any]:
    """Return the settings that come with a plugin, as JSON gives them back."""
    fixed = asdict(settings)
    return {name: fixed[name] for name in ("warmup", "ema_decay", "layer_decay", "loss")}


def split_data(scan: Scan, config: TrainConfig) -> tuple[Scan, pd.DataFrame]:
    """Return the pictures to use and their split: a new one, a protocol's, or that of ``--split-file``.

    Raises:
        DataError: the split file doesn't fit the data, or a split is empty.
    """
    if config.protocol is not None:
        protocol = find_protocol(config.protocol)
        scan = keep_ages(scan, protocol)
        split = split_scan(scan, config.seed, protocol.shares)
    elif config.split_file is None:
        split = split_scan(scan, config.seed)
    else:
        scan, split = apply_split(scan, read_split(config.split_file), str(config.split_file))
    for name, least in (("train", 2), ("val", 1), ("test", 1)):
        count = int((split["split"] == name).sum())
        if count < least:
            raise DataError(_explain_empty(name, count, len(split), scan, config))
    return scan, split


def _explain_empty(name: str, count: int, total: int, scan: Scan, config: TrainConfig) -> str:
    if config.split_file is not None:
        return f"{config.split_file} names {count} faces for '{name}'; a training needs train, val and test"
    if "split" in scan.records.frame.columns:
        return (
            f"the column split names no {name} row ({count} of {total} faces are in it); a training needs train, val "
            "and test: name some, or leave the column out and agegen splits the data itself"
        )
    return f"the split '{name}' has {count} of {total} faces; agegen needs more data"


def measure_crops(scan: Scan) -> LandmarkStats:
    """Return where the landmarks lie in a sample of the pictures."""
    return measure_dataset(scan.records)
