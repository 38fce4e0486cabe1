"""agegen estimates age and gender from photographs of faces, and trains and compares the models that do it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agegen.predict.estimator import Estimator
    from agegen.predict.results import FacePrediction

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
