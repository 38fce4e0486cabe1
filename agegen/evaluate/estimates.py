"""Estimates of labelled faces, and the table of predictions that run folders keep and comparisons read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agegen.backbone import LossSettings
from agegen.batches.batch import Batch, EvalSource
from agegen.data.soft_labels import TEACHER_KEY
from agegen.distributed import SINGLE_PROCESS, DistContext
from agegen.errors import CheckpointError
from agegen.files import replace_atomically
from agegen.machine import Compute
from agegen.model.calibration import Calibration, bound_ages
from agegen.model.loss import DEFAULT_LOSS, compute_loss
from agegen.model.network import average_outputs, compute_std, expect_age, run_views

if TYPE_CHECKING:
    import pandas as pd

ESTIMATE_COLUMNS = ("estimated_age", "age_low", "age_high", "p_female")
# The column with P(age) over the whole years 0–116; optional, half a kilobyte per face.
DISTRIBUTION = "distribution"


@dataclass(frozen=True)
class Estimates:
    """Estimates for N faces.

    Attributes:
        age: (N,) in years.
        spread: the standard deviation of each age distribution, (N,) in years.
        p_female: P(female), (N,), 0–1.
        loss: the mean loss of the faces with labels; NaN if it was not computed.
        distributions: P(age) over 0–116, (N, 117), if they were kept.
    """

    age: NDArray[np.float64]
    spread: NDArray[np.float64]
    p_female: NDArray[np.float64]
    loss: float = float("nan")
    distributions: NDArray[np.float32] | None = None

    @property
    def finite(self) -> bool:
        """Whether all estimates are; damaged weights can give NaN or infinity."""
        return all(bool(np.isfinite(values).all()) for values in (self.age, self.spread, self.p_female))


def estimate_batches(
    network: nn.Module,
    source: EvalSource,
    compute: Compute,
    loss_settings: LossSettings = DEFAULT_LOSS,
    keep: bool = False,
    dist: DistContext = SINGLE_PROCESS,
) -> Estimates:
    """Run a network (the whole model on images, or the heads on features) over labelled batches.

    Args:
        network: in evaluation mode afterwards.
        source: all faces in order.
        compute: device and precision.
        loss_settings: of the mean loss.
        keep: whether to keep the age distributions, half a kilobyte per face.
        dist: the processes that share the batches; each of them gets the estimates of all faces.
    """
    network.eval()
    with torch.inference_mode():
        own = [
            _estimate_batch(network, batch, compute, loss_settings, keep)
            for batch in source.iterate(0, dist.rank, dist.world_size)
        ]
    shared = dist.all_gather(own)
    # Process r computed the batches r, r + world size, …
    batches = [shared[number % dist.world_size][number // dist.world_size] for number in range(sum(map(len, shared)))]
    age, spread, p_female = (torch.cat(column).double().numpy() for column in list(zip(*batches, strict=True))[:3])
    kept = torch.cat([batch.distributions for batch in batches if batch.distributions is not None]) if keep else None
    loss = sum(batch.loss * len(batch.age) for batch in batches) / max(len(age), 1)
    return Estimates(age, spread, p_female, loss, None if kept is None else kept.numpy())


class _BatchEstimates(NamedTuple):
    """Estimates for the N faces of a batch, on the CPU: columns (N,), distributions (N, 117), and the mean loss."""

    age: Tensor
    spread: Tensor
    p_female: Tensor
    distributions: Tensor | None
    loss: float


def _estimate_batch(
    network: nn.Module, batch: Batch, compute: Compute, loss_settings: LossSettings, keep: bool
) -> _BatchEstimates:
    outputs = run_views(network, batch.views, compute)
    loss = float(compute_loss(outputs[0], batch.targets.to(compute.device), loss_settings))
    ages, p_female = average_outputs(outputs)
    age, spread = expect_age(ages).cpu(), compute_std(ages).cpu()
    return _BatchEstimates(age, spread, p_female.cpu(), ages.cpu() if keep else None, loss)


def make_predictions(
    estimates: Estimates, frame: pd.DataFrame, sha256: NDArray[np.str_], calibration: Calibration
) -> pd.DataFrame:
    """Return one row per face: path, labels, group columns, sha256, the four estimate columns, and P(age) if kept."""
    columns = [name for name in frame.columns if name not in ("row", "split")]
    low, high = bound_ages(estimates.age, estimates.spread, calibration)
    table = frame[columns].assign(
        sha256=sha256,
        estimated_age=estimates.age,
        age_low=low,
        age_high=high,
        p_female=estimates.p_female,
    )
    return table if estimates.distributions is None else table.assign(**{DISTRIBUTION: list(estimates.distributions)})


def write_predictions(path: Path, predictions: pd.DataFrame, teacher: str = "") -> None:
    """Write predictions as CSV if the name ends in .csv, else as Parquet, whose metadata then name the ``teacher``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with replace_atomically(path) as temporary:
        if path.suffix.lower() == ".csv":
            predictions.to_csv(temporary, index=False)
            return
        table = pa.Table.from_pandas(predictions, preserve_index=False)
        metadata = {TEACHER_KEY: teacher.encode()} if teacher else {}
        pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **metadata}), temporary)


def read_predictions(path: Path) -> pd.DataFrame:
    """Read the predictions of a run folder.

    Raises:
        CheckpointError: the file is missing or damaged, or lacks a column.
    """
    import pandas as pd

    try:
        predictions = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    missing = {"path", "sha256", "age", "female", *ESTIMATE_COLUMNS} - set(predictions.columns)
    if missing:
        raise CheckpointError(f"{path} has no column '{sorted(missing)[0]}'")
    return predictions
