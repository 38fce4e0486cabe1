"""``agegen export``: a run's model as float16 weights with a model card, or as ONNX."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from agegen.engines.loading import ONNX_SUFFIX
from agegen.engines.onnx_export import export_onnx
from agegen.errors import AgegenError
from agegen.export.card import write_card
from agegen.model.checkpoint import load_checkpoint, read_used_faces, save_checkpoint
from agegen.model.weights import CARD_FILE
from agegen.runs import RunFolder, open_run


def export_run(
    run: Path, weights: Path | None = None, onnx: Path | None = None, repeats: tuple[Path, ...] = ()
) -> list[Path]:
    """Write the requested files of a finished run's best model; return their paths.

    If both are requested, the ONNX file is exported from the written weights, so that the two files match. ``repeats``
    are further runs of the same command, for the model card.

    Raises:
        AgegenError: no file is requested, the run is not finished or not usable, or a file cannot be written.
    """
    _check_suffix(weights, ".safetensors")
    _check_suffix(onnx, ONNX_SUFFIX)
    if weights is None and onnx is None:
        raise AgegenError("nothing to export. Give --weights FILE.safetensors, --onnx FILE.onnx, or both.")
    folder = open_run(run)
    folder.verify(folder.checkpoint)
    written = []
    if weights is not None:
        written += export_weights(folder, weights, repeats)
    if onnx is not None:
        export_onnx(weights or folder.checkpoint, onnx)
        written.append(onnx)
    return written


def export_weights(run: RunFolder, weights: Path, repeats: tuple[Path, ...]) -> list[Path]:
    """Write a run's best weights as float16 safetensors, and ``MODEL_CARD.md`` in the same folder; return both paths.

    Raises:
        AgegenError: the run is not finished, a value exceeds float16's range, or a file cannot be written.
    """
    info, model = load_checkpoint(run.checkpoint)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.abs().max() > torch.finfo(torch.float16).max:
            raise AgegenError(f"{run.checkpoint}: the tensor {name} has values too large for half precision")
    # Older runs have the crop boxes only in run.json. With them, the same dataset gets the same split again.
    trims = run.read()["data"].get("trims", {})
    info = replace(info, training={"trims": trims, **info.training})
    save_checkpoint(weights, model.half(), info, read_used_faces(run.checkpoint))
    card = weights.parent / CARD_FILE
    write_card(card, run, weights, tuple(open_run(path) for path in repeats))
    return [weights, card]


def _check_suffix(path: Path | None, suffix: str) -> None:
    if path is not None and path.suffix != suffix:
        raise AgegenError(f"invalid file name: {path}. It must end in {suffix}.")
