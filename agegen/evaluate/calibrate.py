"""Recalibrate a model's age intervals and gender threshold on one's own labelled faces."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from agegen.data.labels import Labels
from agegen.data.scan import ProgressHook, ignore_progress
from agegen.engines.loading import ONNX_SUFFIX
from agegen.engines.onnx_export import export_model
from agegen.errors import AgegenError, DataError, format_count
from agegen.evaluate.config import CalibrateConfig
from agegen.evaluate.estimates import Estimates
from agegen.evaluate.subject import EvaluationSubject, open_subject
from agegen.files import replace_atomically
from agegen.machine import choose_compute
from agegen.model.calibration import COVERAGE, Calibration, bound_ages, calibrate, choose_rank, describe_weaknesses
from agegen.model.checkpoint import make_checkpoint

# With fewer faces, the true coverage of the intervals is known to no better than ±9 points.
MIN_FACES = 50


@dataclass(frozen=True)
class CalibrateResult:
    """A calibrated copy of a model.

    Attributes:
        written: the files: a checkpoint, and an ONNX file beside it if the original has one.
        calibration: the new one.
        faces: the number of faces that the intervals were fitted to.
        before: the share, 0–1, of their ages inside the model's previous intervals; NaN without exact ages.
        sure: the 95 % confidence bounds of the share, 0–1, of further faces like these whose ages are inside the new
            intervals.
        notices: what the user should know about the data.
    """

    written: tuple[Path, ...]
    calibration: Calibration
    faces: int
    before: float
    sure: tuple[float, float]
    notices: tuple[str, ...]


def calibrate_model(config: CalibrateConfig, on_progress: ProgressHook = ignore_progress) -> CalibrateResult:
    """Write a copy of a model whose age intervals and gender threshold are fitted to the given faces.

    The weights do not change. Faces that the model was trained on are left out: its errors on them are too small.

    Raises:
        AgegenError: the model or the data cannot be used, fewer than 50 faces with an age remain, or ``out`` exists.
    """
    _check_out(config.out)
    compute = choose_compute(config.device)
    subject = open_subject(
        config.data, config.run, config.model, config.weights, config.detector, config.reading, on_progress
    )
    if not subject.calibration.knows_age:
        raise AgegenError(f"{subject.path} was trained without ages: it has no age intervals to calibrate")
    unseen = ~subject.seen
    if not unseen.any():
        raise DataError(f"the model was trained on all faces of {subject.source}. Calibrate on other faces.")
    estimates, labels = subject.estimate(unseen, compute, config.cache_dir, on_progress)
    origins = subject.scan.records.list_face_sources()[unseen]
    fitted = calibrate(estimates.age, estimates.spread, estimates.p_female, labels, origins)
    if fitted.faces < MIN_FACES:
        raise DataError(
            f"calibration requires at least {MIN_FACES} faces with an age; {subject.source} has only {fitted.faces}"
        )
    return CalibrateResult(
        written=_write_model(config.out, subject, fitted),
        calibration=fitted,
        faces=fitted.faces,
        before=measure_coverage(estimates, labels, subject.calibration),
        sure=bound_coverage(fitted.faces),
        notices=(
            *subject.notices,
            *_describe_seen(int(subject.seen.sum())),
            *subject.describe_overlap(),
            *describe_weaknesses(fitted, "faces"),
        ),
    )


def _check_out(path: Path) -> None:
    if path.suffix != ".safetensors":
        raise AgegenError(f"{path}: the output file name must end in .safetensors")
    if path.exists():
        raise AgegenError(f"{path} already exists. Choose another --out.")


def _describe_seen(seen: int) -> list[str]:
    return [f"{format_count(seen, 'face')} left out: the model was trained on them"] if seen else []


def _write_model(out: Path, subject: EvaluationSubject, calibration: Calibration) -> tuple[Path, ...]:
    """Write the checkpoint, and an ONNX file if the original has one; return their paths."""
    info = replace(subject.info, calibration=calibration.to_json())
    onnx = out.with_suffix(ONNX_SUFFIX) if subject.checkpoint.with_suffix(ONNX_SUFFIX).is_file() else None
    # The checkpoint gets its name last: where it exists, an interrupted calibration cannot be repeated.
    with replace_atomically(out) as temporary:
        temporary.write_bytes(make_checkpoint(subject.model, info, subject.training.used))
        if onnx is not None:
            export_model(info, subject.model, temporary, onnx)
    return (out,) if onnx is None else (out, onnx)


def measure_coverage(estimates: Estimates, labels: Labels, calibration: Calibration) -> float:
    """Return the share, 0–1, of exact ages inside a calibration's intervals; NaN without exact ages."""
    low, high = (bound[labels.exact] for bound in bound_ages(estimates.age, estimates.spread, calibration))
    ages = labels.low[labels.exact]
    return float(np.mean((low <= ages) & (ages <= high))) if len(ages) else float("nan")


def bound_coverage(faces: int, share: float = COVERAGE) -> tuple[float, float]:
    """Return the 95 % confidence bounds of the true coverage, 0–1, of intervals that were fitted to n faces.

    Over random calibration sets, the coverage has a Beta distribution. Source: Vovk, "Conditional validity of inductive
    conformal predictors", ACML 2012.
    """
    from scipy.stats import beta

    rank = choose_rank(faces, share)
    distribution = beta(rank, faces + 1 - rank)
    return float(distribution.ppf(0.025)), float(distribution.ppf(0.975))
