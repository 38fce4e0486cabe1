"""The set-up of a training: options, plugin, data, split, model, run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from agegen import runs
from agegen.backbone import Backbone
from agegen.data.images import decode_image
from agegen.data.records import load_records
from agegen.data.scan import ProgressHook, Scan
from agegen.data.splits import apply_split, read_split, split_scan, write_split
from agegen.devices import Compute, choose_compute
from agegen.errors import AgegenError, DataError
from agegen.evaluation import Baseline, find_baseline
from agegen.faces.alignment import CropContract, measure_contract
from agegen.faces.detectors import DEFAULT_DETECTOR, create_detector
from agegen.model import AgeGenderModel
from agegen.registry import Plugin, build_backbone, load_backbone
from agegen.sources import SourceOptions, scan_for
from agegen.training import FitSettings

if TYPE_CHECKING:
    import pandas as pd

# How many of the pictures are searched for landmarks to learn how they are cropped.
_CROPS_MEASURED = 200


@dataclass(frozen=True)
class TrainConfig:
    """Options of ``agegen train``; None stands for the backbone's own default.

    ``save_every``: seconds after which the state is saved again. ``resume``: the folder of an
    unfinished run, to which the other options belong; see :func:`agegen.resume.read_config`.
    """

    model: str
    data: str
    out: Path | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    age_balance: float | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    workers: int | None = None
    split_file: Path | None = None
    cache_dir: Path | None = None
    save_every: float = 60.0
    resume: Path | None = None


@dataclass(frozen=True)
class Training:
    """What the steps of one training share."""

    plugin: Plugin
    settings: FitSettings
    options: SourceOptions
    model: AgeGenderModel
    scan: Scan
    split: pd.DataFrame
    run: runs.RunFolder
    baseline: Baseline
    crop: CropContract | None


def prepare_training(config: TrainConfig, on_progress: ProgressHook) -> Training:
    """Load the plugin and the data, build the model, split, and make the run folder or open that to resume."""
    compute = choose_compute(config.device, config.precision)
    plugin, backbone_class = load_backbone(config.model)
    settings, options = choose_settings(config, backbone_class, compute)
    torch.manual_seed(config.seed)
    model = AgeGenderModel(build_backbone(plugin, backbone_class)).to(compute.device)
    scan = scan_for(backbone_class, load_records(config.data), on_progress)
    if config.resume is not None:
        run = runs.open_run(config.resume)
        scan, split = apply_split(scan, read_split(run.split), "the run's split.csv")
    else:
        scan, split = split_data(scan, config)
        run = runs.create_run(config.out, plugin.name)
        write_split(run.split, split)
    train = scan.records.frame[(split["split"] == "train").to_numpy()]
    return Training(plugin, settings, options, model, scan, split, run, find_baseline(train), measure_crops(scan))


def choose_settings(
    config: TrainConfig, backbone: type[Backbone], compute: Compute
) -> tuple[FitSettings, SourceOptions]:
    """Return the settings, the backbone's defaults filled in where the user gave nothing.

    Raises:
        AgegenError: a number that makes no sense.
    """
    defaults = backbone.defaults
    epochs = defaults.epochs if config.epochs is None else config.epochs
    batch_size = defaults.batch_size if config.batch_size is None else config.batch_size
    lr = defaults.lr if config.lr is None else config.lr
    balance = defaults.age_balance if config.age_balance is None else config.age_balance
    if epochs < 1 or batch_size < 2 or not 0 < lr < float("inf"):
        raise AgegenError("--epochs must be at least 1, --batch-size at least 2 and --lr above 0")
    if not 0 <= balance <= 1:
        raise AgegenError("--age-balance must be between 0 (the data as it is) and 1")
    settings = FitSettings(epochs, lr, defaults.weight_decay)
    options = SourceOptions(compute, batch_size, config.seed, config.workers, defaults.views, config.cache_dir, balance)
    return settings, options


def split_data(scan: Scan, config: TrainConfig) -> tuple[Scan, pd.DataFrame]:
    """Return the pictures to use and their split: a new one, or that of ``--split-file``.

    Raises:
        DataError: the split file doesn't fit the data, or a split is empty.
    """
    if config.split_file is None:
        split = split_scan(scan, config.seed)
    else:
        scan, split = apply_split(scan, read_split(config.split_file), str(config.split_file))
    for name, least in (("train", 2), ("val", 1), ("test", 1)):
        count = int((split["split"] == name).sum())
        if count < least:
            raise DataError(f"the split '{name}' has {count} of {len(split)} faces; agegen needs more data")
    return scan, split


def measure_crops(scan: Scan) -> CropContract | None:
    """Return where the landmarks lie in a sample of the pictures; None where they show no faces to detect."""
    rows = np.random.default_rng(0).permutation(len(scan.records))[:_CROPS_MEASURED]
    crops = (decode_image(scan.records.read(int(row))) for row in rows)
    return measure_contract(crops, create_detector(DEFAULT_DETECTOR))
