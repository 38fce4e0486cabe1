"""The set-up of a training: options, plugin, data, split, model, run folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from agegen import runs
from agegen.batches.sources import SourceOptions, scan_for
from agegen.data.labels import Baseline, find_baseline
from agegen.data.loading import load_sources
from agegen.data.manifests import ReadOptions
from agegen.data.scan import ProgressHook, Scan
from agegen.data.splits import apply_split, read_split, split_scan, write_split
from agegen.errors import DataError
from agegen.faces.alignment import CropContract
from agegen.faces.matching import match_crops, read_trims, survey_crops
from agegen.machine import choose_compute
from agegen.model.network import AgeGenderModel
from agegen.model.plugins import Plugin, build_backbone, load_backbone
from agegen.train.config import FitSettings, TrainConfig, choose_settings

if TYPE_CHECKING:
    import pandas as pd


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
    reading = ReadOptions(config.age_column, config.gender_codes)
    records = load_sources(config.data, reading)
    if config.resume is not None:
        run = runs.open_run(config.resume)
        records = replace(records, trims=read_trims(run.read()["data"].get("trims", {})))
    else:
        records = replace(records, trims=match_crops(records))
    scan = scan_for(backbone_class, records, on_progress)
    if config.resume is not None:
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
    return survey_crops(scan.records).contract
