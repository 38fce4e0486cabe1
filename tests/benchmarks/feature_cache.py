"""Time training on a frozen backbone with and without the feature cache.

    python tests/benchmarks/feature_cache.py --data data/utkface [--model vgg16] [--cache-dir DIR]
    python tests/benchmarks/feature_cache.py --data data/utkface --growth 1000 2000 4000

Without the cache: one epoch in which the backbone processes every (augmented) image, including validation, times ten.
With it: ten epochs on cached features; the time of the extraction is printed separately, and is 0 if the features were
already cached. `--growth` fills caches of these numbers of faces with two views each, and opens each once more. Not a
test: it asserts nothing about speed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from agegen.backbone import Backbone
from agegen.batches.features import FeatureCache
from agegen.batches.images import (
    EvalBatches,
    LabelledPixels,
    Pixels,
    TrainBatches,
    build_view_augmentation,
    choose_workers,
)
from agegen.batches.sources import SourceOptions, make_train_sources
from agegen.data.labels import read_labels
from agegen.data.loading import load_records
from agegen.data.scan import Scan, scan_images
from agegen.data.splits import split_scan
from agegen.machine import choose_compute, keep_freed_memory
from agegen.model.network import AgeGenderModel
from agegen.plugins import load_backbone
from agegen.train.loop import FitSettings, fit, make_trainer

EPOCHS = 10


def time_fit(network, train, val, defaults, epochs, compute) -> float:
    settings = FitSettings(epochs, defaults.lr, defaults.weight_decay)
    started = time.monotonic()
    for _ in fit(make_trainer(network, settings, compute), train, val):
        pass
    return time.monotonic() - started


def time_uncached(backbone: type[Backbone], model: AgeGenderModel, scan: Scan, splits, compute) -> float:
    frame = scan.records.frame

    def pick(name: str) -> LabelledPixels:
        rows = np.flatnonzero(splits == name)
        pixels = Pixels(scan.records, backbone.input_spec.size, scan.pixels, rows)
        return LabelledPixels(pixels, read_labels(frame).pick(rows))

    augmentation = build_view_augmentation(backbone.input_spec)
    train = TrainBatches(pick("train"), augmentation, backbone.defaults.batch_size, 0, choose_workers(None))
    return time_fit(model, train, EvalBatches(pick("val"), model.views), backbone.defaults, 1, compute)


def measure_growth(backbone: type[Backbone], data: str, counts: list[int], compute) -> None:
    model = AgeGenderModel(backbone())
    records = load_records(data)
    for count in counts:
        scan = scan_images(records.select(np.arange(len(records)) < count))
        with tempfile.TemporaryDirectory() as folder:
            cache = FeatureCache(Path(folder), model, scan.sha256, compute)
            pixels = Pixels(scan.records, backbone.input_spec.size, None)
            taken = []
            for _ in range(2):
                started = time.monotonic()
                cache.load(pixels, 2)
                taken.append(time.monotonic() - started)
        print(
            f"{count:,} faces: filled in {taken[0]:.1f} s ({taken[0] / count * 500:.1f} ms a face and view), "
            f"opened in {taken[1]:.2f} s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="vgg16")
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument("--growth", type=int, nargs="+")
    options = parser.parse_args()
    compute = choose_compute()
    _, backbone = load_backbone(options.model)
    if options.growth:
        keep_freed_memory()
        measure_growth(backbone, options.data, options.growth, compute)
        return
    scan = scan_images(load_records(options.data), backbone.input_spec.size)
    splits = split_scan(scan, 0)["split"].to_numpy()
    defaults = backbone.defaults

    torch.manual_seed(0)
    model = AgeGenderModel(backbone())
    chosen = SourceOptions(compute, defaults.batch_size, views=defaults.views, cache_dir=options.cache_dir)
    started = time.monotonic()
    sources = make_train_sources(model, scan, splits, chosen)
    extraction = time.monotonic() - started
    cached = time_fit(sources.network, sources.train, sources.val, defaults, EPOCHS, compute)
    one = time_uncached(backbone, AgeGenderModel(backbone()), scan, splits, compute)
    print(f"{len(splits)} faces, {compute}, {torch.get_num_threads()} threads")
    print(f"without the cache: {one:.0f} s for one epoch, {one * EPOCHS:.0f} s for {EPOCHS}")
    print(f"with it: {cached:.0f} s for {EPOCHS} epochs ({one * EPOCHS / cached:.1f} times as fast)")
    print(f"opening or filling the cache, {defaults.views} views: {extraction:.0f} s")


if __name__ == "__main__":
    main()
