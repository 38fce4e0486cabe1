"""Likely wrong labels: faces that a trained model finds hard to believe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agegen.batches.sources import EVAL_VIEWS, SourceOptions, make_eval_source
from agegen.data.labels import format_age, format_gender
from agegen.data.scan import ProgressHook, Scan
from agegen.evaluate.estimates import estimate_batches
from agegen.evaluate.evaluate import describe_swap
from agegen.machine import choose_compute
from agegen.model.calibration import interpolate_scales, read_calibration
from agegen.model.checkpoint import load_checkpoint

# An age is doubted beyond so many half-widths of its 90 % interval, a gender below that probability.
_DOUBTED_WIDTHS, _DOUBTED_PROBABILITY = 2.0, 0.02
# Below it an age is no likely mistake, however sure a model is of another one.
_LEAST_YEARS = 15.0


@dataclass(frozen=True)
class LabelIssue:
    """A face whose label a model doubts, with its estimate; the higher ``doubt``, the likelier it is wrong."""

    path: str
    age: str
    gender: str
    estimated_age: float
    p_female: float
    doubt: float
    reason: str


def find_label_issues(
    checkpoint: Path, scan: Scan, device: str, on_progress: ProgressHook
) -> tuple[list[LabelIssue], str | None]:
    """Return the faces whose labels a trained model doubts, the likeliest wrong first; and a notice where the genders
    look swapped as a whole: then no single one is doubted.

    A model doubts less of what it was trained on: cross-check with one that never saw these faces.

    Raises:
        AgegenError: the checkpoint can't be used.
    """
    info, model = load_checkpoint(checkpoint)
    options = SourceOptions(choose_compute(device), 0, views=EVAL_VIEWS)
    network, source = make_eval_source(model, scan, np.ones(len(scan.sha256), dtype=bool), options, on_progress)
    estimates = estimate_batches(network.to(options.compute.device), source, options.compute)
    calibration = read_calibration(info.calibration)
    labels = source.labels
    half = np.maximum(interpolate_scales(estimates.age, calibration) * estimates.spread, _LEAST_YEARS / _DOUBTED_WIDTHS)
    outside = np.maximum(np.maximum(labels.low - estimates.age, estimates.age - labels.high), 0)
    widths = np.nan_to_num(outside) / half
    female = labels.female
    believed = np.where(female > 0.5, estimates.p_female, 1 - estimates.p_female)
    # A gender that isn't known can't be doubted.
    believed = np.where(labels.gendered, believed, 1.0)
    known = believed[labels.gendered]
    swapped = describe_swap(float((known >= 0.5).mean()) if len(known) else 1.0, len(known))
    if swapped:
        believed = np.ones_like(believed)
    names = scan.records.frame["path"].to_numpy()
    suspects = []
    for row in np.flatnonzero((widths > _DOUBTED_WIDTHS) | (believed < _DOUBTED_PROBABILITY)):
        reasons = []
        if widths[row] > _DOUBTED_WIDTHS:
            reasons.append(f"labelled {format_age(labels.low[row], labels.high[row])}, looks {estimates.age[row]:.0f}")
        if believed[row] < _DOUBTED_PROBABILITY:
            said = "female" if female[row] > 0.5 else "male"
            reasons.append(f"labelled {said}, of which the model gives {believed[row]:.1%}")
        doubt = max(widths[row] / _DOUBTED_WIDTHS, np.log(believed[row] + 1e-9) / np.log(_DOUBTED_PROBABILITY))
        suspects.append(
            LabelIssue(
                path=str(names[row]),
                age=format_age(labels.low[row], labels.high[row]),
                gender=format_gender(female[row]),
                estimated_age=round(float(estimates.age[row]), 1),
                p_female=round(float(estimates.p_female[row]), 4),
                doubt=round(float(doubt), 3),
                reason="; ".join(reasons),
            )
        )
    return sorted(suspects, key=lambda suspect: (-suspect.doubt, suspect.path)), swapped
