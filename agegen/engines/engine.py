"""What an engine is: a loaded model that takes aligned crops."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class CropOutputs(NamedTuple):
    """What a model says of N crops, the plain and the mirrored view of each averaged.

    ``age`` (N,) and ``spread`` (N,), expectation and standard deviation of the age distribution in years;
    ``p_female`` (N,), 0–1; ``distribution`` (N, 117), P(age) over 0–116, where it was asked for.
    """

    age: NDArray[np.float64]
    spread: NDArray[np.float64]
    p_female: NDArray[np.float64]
    distribution: NDArray[np.float64] | None = None


class Engine(Protocol):
    """A loaded model; ``input_size`` is the side in pixels of the crops that it takes."""

    name: str
    input_size: int

    def run(self, crops: NDArray[np.uint8], distribution: bool = False) -> CropOutputs:
        """Return estimates for RGB crops (N, input_size, input_size, 3); with P(age) where ``distribution`` says."""
