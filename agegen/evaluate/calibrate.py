"""Fit a model's intervals and its threshold for gender anew, to labelled faces of one's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from agegen.batches.sources import EVAL_VIEWS, SourceOptions, make_eval_source, scan_for
from agegen.data.labels import Labels
from agegen.data.loading import load_sources
from agegen.data.manifests import DEFAULT_READ_OPTIONS, ReadOptions
from agegen.data.scan import ProgressHook, ignore_progress
from agegen.engines.loading import ONNX_SUFFIX
from agegen.engines.onnx_export import export_model
from agegen.errors import AgegenError, DataError
from agegen.evaluate.estimates import Estimates, estimate_batches
from agegen.evaluate.evaluate import EvalConfig, find_subject, locate_splits, match_records
from agegen.machine import choose_compute
from agegen.model.calibration import COVERAGE, Calibration, bound_ages, calibrate, read_calibration
from agegen.model.checkpoint import load_checkpoint, save_checkpoint

# With fewer, the share that intervals hold is known to no better than ±9 points.
LEAST_FACES = 50


@dataclass(frozen=True)
class CalibrateConfig:
    """Options of ``agegen calibrate``: a run, or shipped weights, and the labelled faces to fit to."""

    data: tuple[str, ...]
    out: Path
    run: Path | None = None
    model: str | None = None
    weights: str | None = None
    detector: str | None = None
    device: str = "auto"
    cache_dir: Path | None = None
    reading: ReadOptions = DEFAULT_READ_OPTIONS


@dataclass(frozen=True)
class CalibrateResult:
    """A calibration that was fitted and written.

    Attributes:
        written: the files: a checkpoint, and the ONNX file beside it where the backbone has one.
        faces: to which the intervals were fitted.
        before: the share of these, 0–1, that the model's own intervals held; NaN without exact ages.
        sure: the share of further faces like these, 0–1, that the new ones hold, with 95 % certainty: from, to.
        notices: what the user should know.
    """

    written: tuple[Path, ...]
    calibration: Calibration
    faces: int
    before: float
    sure: tuple[float, float]
    notices: tuple[str, ...]


def calibrate_model(config: CalibrateConfig, on_progress: ProgressHook = ignore_progress) -> CalibrateResult:
    """Write a copy of a model whose intervals hold on one's own faces; its weights stay as they are.

    Faces that the model's training saw take no part: its errors on them are too small.

    Raises:
        AgegenError: the model or the data can't be used, fewer than 50 faces with an age are left, or a file is there.
    """
    if config.out.suffix != ".safetensors":
        raise AgegenError(f"{config.out}: give a name that ends in .safetensors")
    if config.out.exists():
        raise AgegenError(f"{config.out} is there already; choose another --out")
    subject = find_subject(EvalConfig(config.run, config.model, config.data, weights=config.weights))
    info, model = load_checkpoint(subject.checkpoint)
    records, notices = match_records(load_sources(config.data, config.reading), subject, info, config.detector)
    scan, origin = locate_splits(scan_for(model.backbone, records, on_progress), subject, info)
    fresh = ~origin.seen
    if not fresh.all():
        notices.append(f"{int((~fresh).sum()):,} faces that the model was trained on took no part")
    if not fresh.any():
        raise DataError(f"the model was trained on all faces of {subject.source}; calibrate on others")
    options = SourceOptions(choose_compute(config.device), 0, views=EVAL_VIEWS, cache_dir=config.cache_dir)
    network, source = make_eval_source(model, scan, fresh, options, on_progress)
    estimates = estimate_batches(network.to(options.compute.device), source, options.compute)
    origins = scan.records.list_face_sources()[fresh]
    fitted = calibrate(estimates.age, estimates.spread, estimates.p_female, source.labels, origins)
    if fitted.faces < LEAST_FACES:
        raise DataError(f"{fitted.faces} faces of {subject.source} have an age; intervals need about {LEAST_FACES}")
    before = measure_coverage(estimates, source.labels, read_calibration(info.calibration))
    info = replace(info, calibration=fitted.to_json())
    save_checkpoint(config.out, model, info)
    written = [config.out]
    if subject.checkpoint.with_suffix(ONNX_SUFFIX).is_file():
        written.append(config.out.with_suffix(ONNX_SUFFIX))
        export_model(info, model, config.out, written[-1])
    return CalibrateResult(tuple(written), fitted, fitted.faces, before, bound_coverage(fitted.faces), tuple(notices))


def measure_coverage(estimates: Estimates, labels: Labels, calibration: Calibration) -> float:
    """Return the share, 0–1, of exact ages that a calibration's intervals hold; NaN where there are none."""
    low, high = (bound[labels.exact] for bound in bound_ages(estimates.age, estimates.spread, calibration))
    ages = labels.low[labels.exact]
    return float(np.mean((low <= ages) & (ages <= high))) if len(ages) else float("nan")


def bound_coverage(faces: int, share: float = COVERAGE) -> tuple[float, float]:
    """Return between which shares, 0–1, the true coverage of intervals lies that were fitted to n faces.

    Over calibration sets it has a Beta distribution. Source: Vovk, "Conditional validity of inductive conformal
    predictors", ACML 2012.
    """
    from scipy.stats import beta

    left = int(np.floor((faces + 1) * (1 - share)))
    law = beta(faces + 1 - left, max(left, 1))
    return float(law.ppf(0.025)), float(law.ppf(0.975))
