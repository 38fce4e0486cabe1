"""Export a run's weights to a file of their own, in half precision, with the model card beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agegen.checkpoints import load_checkpoint, save_checkpoint
from agegen.errors import AgegenError
from agegen.model_card import write_card
from agegen.runs import open_run
from agegen.weights import CARD_FILE


@dataclass(frozen=True)
class ExportConfig:
    """Options of ``agegen export``; ``repeats`` are further runs of the same command, for the card."""

    run: Path
    weights: Path
    repeats: tuple[Path, ...] = ()


@dataclass(frozen=True)
class ExportResult:
    """What was written; ``size`` of the weights in bytes."""

    weights: Path
    card: Path
    size: int


def export_run(config: ExportConfig) -> ExportResult:
    """Write a finished run's best weights as float16 safetensors, and ``MODEL_CARD.md`` beside them.

    Raises:
        AgegenError: the run isn't finished or can't be used, or the file can't be written.
    """
    if config.weights.suffix != ".safetensors":
        raise AgegenError(f"{config.weights}: weights are written as .safetensors; give such a name")
    run = open_run(config.run)
    info, model = load_checkpoint(run.checkpoint)
    save_checkpoint(config.weights, model.half(), info)
    card = config.weights.parent / CARD_FILE
    write_card(card, run, config.weights, tuple(open_run(path) for path in config.repeats))
    return ExportResult(config.weights, card, config.weights.stat().st_size)
