"""A loaded model that estimates aligned crops."""

from __future__ import annotations

import numpy as np

from agegen.data.images import RGB, resize_image
from agegen.engines.engine import Engine
from agegen.faces.alignment import CropContract
from agegen.model.calibration import bound_ages, find_sigma, read_calibration
from agegen.model.metadata import CheckpointInfo
from agegen.predict.results import FaceEstimate

# A batch of so many faces is as quick per face as a larger one.
BATCH_FACES = 64


class CropModel:
    """A loaded model that estimates age and gender of aligned crops."""

    def __init__(self, info: CheckpointInfo, engine: Engine, digest: str = "", distribution: bool = False) -> None:
        """Take a loaded model; ``digest`` is the SHA-256 of its weights, ``distribution`` whether P(age) is wanted."""
        self._distribution = distribution
        self.info = info
        self.digest = digest
        self.name = " ".join(part for part in (info.model, info.version, digest[:12]) if part)
        self.engine = engine
        self.calibration = read_calibration(info.calibration)
        self.contract = CropContract.from_json(info.crop) if info.crop else CropContract()

    def estimate(self, crops: list[RGB]) -> list[FaceEstimate]:
        """Return estimates for aligned crops (RGB pictures of any size); a crowd is estimated in several batches."""
        estimates = []
        for start in range(0, len(crops), BATCH_FACES):
            part = crops[start : start + BATCH_FACES]
            images = np.stack([resize_image(crop, self.engine.input_size) for crop in part])
            age, spread, p_female, ages = self.engine.run(images, self._distribution)
            low, high = bound_ages(age, spread, self.calibration)
            sigma = find_sigma(age, spread, self.calibration)
            columns = (values.tolist() for values in (age, low, high, p_female, sigma))
            kept = [None] * len(part) if ages is None else list(ages)
            estimates += [FaceEstimate(*row) for row in zip(*columns, kept, strict=True)]
        return estimates
