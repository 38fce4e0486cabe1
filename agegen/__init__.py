"""Estimate age and gender from photos of faces, and train, evaluate and compare models that do so."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agegen.predict.estimator import Estimator
    from agegen.predict.results import FacePrediction

# Some dependencies send telemetry by default, partly when they are imported: onnxruntime writes a device id to HOME and
# contacts a Microsoft host, albumentations checks for a newer release, and the Hub's client counts calls. This must run
# before any of them is imported. A variable that the user has set is not changed.
for _variable, _value in (
    ("ORT_DISABLE_TELEMETRY", "1"),
    ("NO_ALBUMENTATIONS_UPDATE", "1"),
    ("HF_HUB_DISABLE_TELEMETRY", "1"),
    ("DO_NOT_TRACK", "1"),
):
    os.environ.setdefault(_variable, _value)

__all__ = ["Estimator", "FacePrediction", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the public classes on first use, so that ``import agegen`` and ``agegen --help`` stay fast."""
    if name == "Estimator":
        from agegen.predict.estimator import Estimator

        return Estimator
    if name == "FacePrediction":
        from agegen.predict.results import FacePrediction

        return FacePrediction
    if name == "__version__":
        from importlib.metadata import version

        return version("agegen")
    raise AttributeError(f"module 'agegen' has no attribute '{name}'")
