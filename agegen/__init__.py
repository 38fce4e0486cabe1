"""agegen estimates age and gender from photographs of faces, and trains and compares the models that do it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agegen.predict.estimator import Estimator
    from agegen.predict.results import FacePrediction

# What agegen builds on reports to its makers unless it is told not to, some of it as it is imported: onnxruntime
# writes a device id into HOME and asks for a Microsoft host, albumentations looks for a newer release, the Hub's
# client counts calls. So this stands before every import of them. Whoever wants it otherwise sets the variable.
for _variable, _value in (
    ("ORT_DISABLE_TELEMETRY", "1"),
    ("NO_ALBUMENTATIONS_UPDATE", "1"),
    ("HF_HUB_DISABLE_TELEMETRY", "1"),
    ("DO_NOT_TRACK", "1"),
):
    os.environ.setdefault(_variable, _value)

__all__ = ["Estimator", "FacePrediction", "__version__"]


def __getattr__(name: str) -> Any:
    """Import what needs torch at first use only: start-up is a feature."""
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
