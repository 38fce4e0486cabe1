"""The set-up of a training: options, plugin, data, split, model, run folder."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from agegen import runs
from agegen.batches.sources import SourceOptions, scan_for
from agegen.data.labels import Baseline, find_baseline
from agegen.data.loading import load_sources
from agegen.data.manifests import ReadOptions
from agegen.data.scan import ProgressHook, Scan
from agegen.data.splits import apply_split, fingerprint_split, read_split, split_scan, write_split
from agegen.errors import AgegenError, DataError
from agegen.faces.cropping import FaceCropper
from agegen.faces.matching import CropSurvey, match_crops, read_trims, survey_crops
from agegen.machine import choose_compute
from agegen.model.network import AgeGenderModel
from agegen.model.plugins import Plugin, build_backbone, load_backbone
from agegen.train.config import FitSettings, TrainConfig, choose_settings
from agegen.train.init import count_seen, find_init, start_from

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Training:
    """What the steps of one training share.

    ``start`` is the checkpoint that it begins with, None for fresh weights; ``seen`` counts the faces of validation
    and test that the training behind it saw.
    """

    plugin: Plugin
    settings: FitSettings
    options: SourceOptions
    model: AgeGenderModel
    scan: Scan
    split: pd.DataFrame
    run: runs.RunFolder
    baseline: Baseline
    survey: CropSurvey
    start: Path | None = None
    seen: dict[str, int] = field(default_factory=dict)


def prepare_training(config: TrainConfig, on_progress: ProgressHook) -> Training:
    """Load the plugin and the data, build the model, split, and make the run folder or open that to resume."""
    compute = choose_compute(config.device, config.precision)
    plugin, backbone_class = load_backbone(config.model)
    settings, options = choose_settings(config, backbone_class, compute)
    torch.manual_seed(config.seed)
    model = AgeGenderModel(build_backbone(plugin, backbone_class))
    start = None if config.init is None else find_init(config.init, plugin.name)
    if start is not None:
        start_from(model, start)
    model.to(compute.device)
    reading = ReadOptions(config.age_column, config.gender_codes)
    records = load_sources(config.data, reading)
    if config.resume is not None:
        run = runs.open_run(config.resume)
        records = replace(records, trims=read_trims(run.read()["data"].get("trims", {})))
    else:
        records = replace(records, trims={} if config.detector else match_crops(records))
    if config.detector is not None:
        records = replace(records, cropper=FaceCropper(config.detector))
    scan = scan_for(backbone_class, records, on_progress)
    if config.resume is not None:
        scan, split = apply_split(scan, read_split(run.split), "the run's split.csv")
        check_same(run, split, plugin, settings, options)
    else:
        scan, split = split_data(scan, config)
        run = runs.create_run(config.out, plugin.name)
        write_split(run.split, split)
    train = scan.records.frame[(split["split"] == "train").to_numpy()]
    survey = measure_crops(scan)
    seen = {} if start is None else count_seen(start, split, scan.hashes)
    return Training(plugin, settings, options, model, scan, split, run, find_baseline(train), survey, start, seen)


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
        ("device and precision", kept.get("compute"), str(options.compute)),
    )
    for what, before, now in pairs:
        if before != now:
            said = f"{what} was {before}, and is now {now}"
            raise AgegenError(f"{run.path} can't go on as it began: {said}; restore that, or train anew")


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


def measure_crops(scan: Scan) -> CropSurvey:
    """Return where the landmarks lie in a sample of the pictures."""
    return survey_crops(scan.records)
