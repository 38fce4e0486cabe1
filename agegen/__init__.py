"""agegen estimates age and gender from photographs of faces, and trains and compares the models that do it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agegen.estimator import Estimator
    from agegen.prediction import FacePrediction

__all__ = ["Estimator", "FacePrediction", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what needs torch at first use only: start-up is a feature."""
    if name == "Estimator":
        from agegen.estimator import Estimator

        return Estimator
    if name == "FacePrediction":
        from agegen.prediction import FacePrediction

        return FacePrediction
    raise AttributeError(f"module 'agegen' has no attribute '{name}'")
