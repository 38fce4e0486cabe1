"""Starting from trained weights: those of a run, a checkpoint, or the ones that ship for a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from agegen.data.splits import find_seen, read_split
from agegen.errors import AgegenError
from agegen.model.checkpoint import load_checkpoint
from agegen.model.metadata import read_info
from agegen.model.network import AgeGenderModel
from agegen.model.weights import find_checkpoint, find_weights, parse_shipped
from agegen.runs import RunFolder

if TYPE_CHECKING:
    import pandas as pd


def find_init(init: str, model: str) -> Path:
    """Return the checkpoint that ``--init`` names: a run, a file, or ``NAME[/WEIGHTS]`` that ship.

    Raises:
        AgegenError: there is none, or it is that of another backbone.
    """
    shipped = parse_shipped(init)
    checkpoint = find_weights(*shipped) if shipped else find_checkpoint(None, Path(init))
    made_by = read_info(checkpoint).model
    if made_by != model:
        raise AgegenError(f"--init {init} holds weights of '{made_by}', which don't fit --model {model}")
    return checkpoint


def start_from(model: AgeGenderModel, checkpoint: Path) -> None:
    """Fill a model with a checkpoint's tensors; a frozen backbone has its own already.

    Raises:
        CheckpointError: they don't fit.
    """
    _, loaded = load_checkpoint(checkpoint)
    model.load_state_dict(loaded.state_dict())


def count_seen(checkpoint: Path, split: pd.DataFrame, hashes: NDArray[np.bool_]) -> dict[str, int]:
    """Return how many faces of validation and test the earlier training saw; nothing where its run isn't at hand."""
    run = RunFolder(checkpoint.parent)
    if not run.split.is_file():
        return {}
    earlier = read_split(run.split)
    counts = {}
    for name in ("val", "test"):
        rows = np.flatnonzero(split["split"] == name)
        counts[name] = int(find_seen(earlier, list(split["sha256"].iloc[rows]), hashes[rows]).sum())
    return counts
