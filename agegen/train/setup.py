"""The set-up of a training: options, plugin, data, split, model, run folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from agegen import runs
from agegen.batches.sources import SourceOptions, scan_for
from agegen.data.images import decode_image
from agegen.data.labels import Baseline, find_baseline
from agegen.data.loading import load_records
from agegen.data.scan import ProgressHook, Scan
from agegen.data.splits import apply_split, read_split, split_scan, write_split
from agegen.errors import DataError
from agegen.faces.alignment import CropContract, measure_contract
from agegen.faces.detectors import DEFAULT_DETECTOR, create_detector
from agegen.machine import choose_compute
from agegen.model.network import AgeGenderModel
from agegen.model.plugins import Plugin, build_backbone, load_backbone
from agegen.train.config import FitSettings, TrainConfig, choose_settings

if TYPE_CHECKING:
    import pandas as pd

# How many of the pictures are searched for landmarks to learn how they are cropped.
_CROPS_MEASURED = 200


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
