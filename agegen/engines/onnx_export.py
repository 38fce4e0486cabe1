"""Export a checkpoint to ONNX: one file that takes raw crops and gives ages and genders, whatever reads it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agegen.backbone import Backbone
from agegen.engines.engine import INPUT, SOURCE_KEY, CropOutputs, OnnxEngine
from agegen.engines.torch_engine import TorchEngine
from agegen.errors import AgegenError
from agegen.files import digest_file, write_bytes
from agegen.machine import choose_compute, count_cores, open_session
from agegen.model.checkpoint import load_checkpoint
from agegen.model.metadata import CheckpointInfo, format_info
from agegen.model.network import AgeGenderModel, Outputs, average_outputs, compute_std, expect_age

# Smaller tensors (biases, norms) stay in single precision.
_LEAST_HALVED = 1024


class DeployedModel(nn.Module):
    """A model with all that surrounds it, from raw crops to :class:`agegen.engines.engine.CropOutputs`."""

    def __init__(self, model: AgeGenderModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map RGB crops (N, size, size, 3), uint8, to age (N,), spread (N,), P(female) (N,) and P(age) (N, 117)."""
        count = crops.shape[0]
        images = torch.cat([crops, crops.flip(2)]).permute(0, 3, 1, 2)
        outputs = self.model(images)
        views = [Outputs(*(part[half] for part in outputs)) for half in (slice(None, count), slice(count, None))]
        ages, p_female = average_outputs(views)
        return expect_age(ages), compute_std(ages), p_female, ages


def export_onnx(checkpoint: Path, target: Path, backbone: Backbone | None = None) -> None:
    """Write a checkpoint's model as ONNX, with its weights in half precision and its metadata.

    The input ``crops`` (N, size, size, 3) is uint8 RGB; the outputs ``age``, ``spread`` (years) and ``p_female``
    (0–1), (N,) each, and ``distribution`` (N, 117), are averaged over the plain and the mirrored crop. The computation
    is in float32. ``backbone`` is one that is built already, to be filled with the checkpoint's tensors.

    Raises:
        AgegenError: the checkpoint can't be loaded, the backbone can't be expressed in ONNX, or the file written.
    """
    info, model = load_checkpoint(checkpoint, backbone)
    export_model(info, model, checkpoint, target)


def export_model(
    info: CheckpointInfo,
    model: AgeGenderModel,
    checkpoint: Path,
    target: Path,
    crops: NDArray[np.uint8] | None = None,
) -> None:
    """Write a model that is loaded already, from ``checkpoint``; see :func:`export_onnx`.

    ``crops`` (N, size, size, 3), where faces are at hand, are what the file must agree with the model on.
    """
    from onnx import helper

    content = convert_model(model.cpu(), info.model)
    halve_weights(content)
    helper.set_model_props(content, format_info(info) | {SOURCE_KEY: digest_file(checkpoint)})
    written = content.SerializeToString(deterministic=True)
    if not agrees_with(model, written, crops):
        raise AgegenError(f"backbone '{info.model}' can't be exported to ONNX: it computes something else there")
    write_bytes(target, written)


def agrees_with(model: AgeGenderModel, content: bytes, faces: NDArray[np.uint8] | None = None) -> bool:
    """Return whether an ONNX file gives what the model gives, within 0.05 years and 0.005 of probability."""
    torch_engine = TorchEngine(model, choose_compute("cpu", "fp32"))
    size = torch_engine.input_size
    crops = np.random.default_rng(0).integers(0, 256, (3, size, size, 3)).astype(np.uint8)
    # Noise alone leads through parts of a network that no face leads through.
    crops = crops if faces is None else np.concatenate([crops, faces])
    expected, found = torch_engine.run(crops), OnnxEngine(open_session(content, count_cores()), size).run(crops)
    limits = 0.05, 0.05, 0.005
    pairs = zip(expected[:3], found[:3], limits, strict=True)
    return all((np.abs(a - b) < limit).all() for a, b, limit in pairs)


def convert_model(model: AgeGenderModel, name: str) -> Any:
    """Return a model as an ``onnx.ModelProto``; errors call its backbone ``name``.

    Raises:
        AgegenError: torch's exporter can't express it.
    """
    size = model.backbone.input_spec.size
    crops = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    try:
        with _hush():
            program = torch.onnx.export(
                DeployedModel(model).eval(),
                (crops,),
                input_names=[INPUT],
                output_names=list(CropOutputs._fields),
                dynamic_shapes=({0: torch.export.Dim("faces")},),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter wraps whatever it meets
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise AgegenError(f"backbone '{name}' can't be exported to ONNX: {cause}") from error
    assert program is not None
    content = program.model_proto
    for node in content.graph.node:
        # The exporter notes where in whose files each operation was written.
        del node.metadata_props[:]
        node.doc_string = ""
    return content


def halve_weights(content: Any) -> None:
    """Store an ``onnx.ModelProto``'s large float32 tensors as float16, to be cast back when it is loaded."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in content.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < _LEAST_HALVED:
            continue
        values = numpy_helper.to_array(tensor)
        if np.abs(values).max() > np.finfo(np.float16).max:
            continue
        half = numpy_helper.from_array(values.astype(np.float16), f"{tensor.name}.half")
        casts.append(helper.make_node("Cast", [half.name], [tensor.name], to=TensorProto.FLOAT))
        tensor.CopyFrom(half)
    nodes = [*casts, *content.graph.node]
    del content.graph.node[:]
    content.graph.node.extend(nodes)


@contextmanager
def _hush() -> Iterator[None]:
    """Keep the exporter's remarks from the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
