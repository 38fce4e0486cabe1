"""Export a checkpoint to ONNX: one file that maps raw crops to age and gender in any ONNX runtime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agegen.data.demo import draw_face
from agegen.data.images import resize_image
from agegen.engines.engine import CHECKED_KEY, INPUT, INT8_KEY, SOURCE_KEY, CropOutputs, OnnxEngine, make_checksum
from agegen.engines.torch_engine import TorchEngine
from agegen.errors import AgegenError, shorten
from agegen.files import digest_file, write_bytes
from agegen.machine import choose_compute, open_session
from agegen.model.checkpoint import load_checkpoint
from agegen.model.metadata import CheckpointInfo, format_info
from agegen.model.network import AgeGenderModel, Outputs, average_outputs, compute_std, expect_age
from agegen.options import Int8Part

# Tensors with fewer elements (biases, normalization) stay in float32.
_MIN_HALF_ELEMENTS = 1024
# Largest differences from torch's outputs that an export may have: years, years, probability.
_TOLERANCES = 0.05, 0.05, 0.005
# Images on which they are compared. A few suffice to find an operation that differs.
_NOISE_CHECKS, _FACE_CHECKS = 3, 8
# The heads in the names that torch's exporter gives to modules: those of `AgeGenderModel` inside `DeployedModel`.
_HEADS_SCOPE = "model.heads"
# Operations to quantize. None of them is in the pre- and postprocessing, where int8 would be too coarse: a step of an
# age from 0 to 116 would be half a year.
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_QUANTIZED = (*_PRODUCTS, "Add", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool")
# Crops per run while the ranges of activations are measured; larger batches only take more memory.
_CALIBRATION_BATCH = 16


def export_onnx(checkpoint: Path, target: Path) -> None:
    """Write a checkpoint's model as ONNX, with float16 weights and the checkpoint's metadata.

    The input ``crops`` (N, size, size, 3) is uint8 RGB. The outputs ``age`` and ``spread`` (years), ``p_female`` (0–1),
    (N,) each, and ``distribution`` (N, 117) are averaged over the model's views: the crop and, with two, its mirror
    image. The computation is in float32.

    Raises:
        AgegenError: the checkpoint cannot be loaded, the backbone cannot be exported, or the file cannot be written.
    """
    info, model = load_checkpoint(checkpoint)
    export_model(info, model, checkpoint, target)


def export_model(info: CheckpointInfo, model: AgeGenderModel, checkpoint: Path, target: Path) -> None:
    """Write a model that was loaded from ``checkpoint``; see :func:`export_onnx`."""
    write_bytes(target, encode_model(convert_checked(info, model), info, digest_file(checkpoint)))


def convert_checked(info: CheckpointInfo, model: AgeGenderModel) -> Any:
    """Return a model as ``onnx.ModelProto`` in float32, whose outputs with float16 weights match those of torch.

    Raises:
        AgegenError: torch's exporter does not support the backbone, or exports another computation.
    """
    proto = convert_model(model.cpu(), info.model)
    if not outputs_match(model, encode_model(proto, info)):
        raise AgegenError(f"cannot export backbone '{info.model}' to ONNX: the outputs differ from those of torch")
    return proto


def encode_model(proto: Any, info: CheckpointInfo, source: str = "", changes: str | None = None) -> bytes:
    """Return the content of an ONNX file: with float16 weights, metadata and checksum.

    Args:
        proto: an ``onnx.ModelProto``, which stays unchanged.
        info: the metadata.
        source: the SHA-256 of the checkpoint.
        changes: of an int8 model: how its estimates differ from those in float32, as JSON.
    """
    from onnx import ModelProto, helper

    stored = ModelProto()
    stored.CopyFrom(proto)
    halve_weights(stored)
    extra = {} if changes is None else {INT8_KEY: changes}
    helper.set_model_props(stored, format_info(info) | {SOURCE_KEY: source, CHECKED_KEY: "sha256"} | extra)
    content: bytes = stored.SerializeToString(deterministic=True)
    return content + make_checksum(content)


class DeployedModel(nn.Module):
    """A model with its pre- and postprocessing: raw crops to :class:`agegen.engines.engine.CropOutputs`."""

    def __init__(self, model: AgeGenderModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map RGB crops (N, size, size, 3), uint8, to age (N,), spread (N,), P(female) (N,) and P(age) (N, 117)."""
        count = crops.shape[0]
        images = crops if self.model.views == 1 else torch.cat([crops, crops.flip(2)])
        outputs = self.model(images.permute(0, 3, 1, 2))
        parts = [slice(None)] if self.model.views == 1 else [slice(None, count), slice(count, None)]
        ages, p_female = average_outputs([Outputs(*(values[part] for values in outputs)) for part in parts])
        return expect_age(ages), compute_std(ages), p_female, ages


def convert_model(model: AgeGenderModel, name: str) -> Any:
    """Return a model as ``onnx.ModelProto``; ``name`` is that of its backbone, for errors.

    Raises:
        AgegenError: torch's exporter does not support the backbone.
    """
    size = model.backbone.input_spec.size
    crops = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    try:
        with _silence_exporter():
            program = torch.onnx.export(
                DeployedModel(model).eval(),
                (crops,),
                input_names=[INPUT],
                output_names=list(CropOutputs._fields),
                dynamic_shapes=({0: torch.export.Dim("faces")},),
                # Both are the defaults of newer versions of torch.
                dynamo=True,
                optimize=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter wraps errors of any class
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise AgegenError(f"cannot export backbone '{name}' to ONNX: {cause}") from error
    assert program is not None
    proto = program.model_proto
    for node in proto.graph.node:
        if any(f"'{_HEADS_SCOPE}'" in entry.value for entry in node.metadata_props):
            node.name = f"{Int8Part.HEADS}/{node.name}"
        # The exporter stores the source file and line of each operation, with the paths of this machine.
        del node.metadata_props[:]
        node.doc_string = ""
    return proto


@contextmanager
def _silence_exporter() -> Iterator[None]:
    """Suppress the exporter's logs, warnings and prints."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def halve_weights(proto: Any) -> None:
    """Store the large float32 tensors of an ``onnx.ModelProto`` as float16, with a cast to float32 at load time.

    The scales of quantized tensors stay: runtimes recognize them only as constants.
    """
    from onnx import TensorProto, helper, numpy_helper

    scales = {node.input[1] for node in proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    casts = []
    for tensor in proto.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < _MIN_HALF_ELEMENTS or tensor.name in scales:
            continue
        values = numpy_helper.to_array(tensor)
        if np.abs(values).max() > np.finfo(np.float16).max:
            continue
        half = numpy_helper.from_array(values.astype(np.float16), f"{tensor.name}.half")
        casts.append(helper.make_node("Cast", [half.name], [tensor.name], to=TensorProto.FLOAT))
        tensor.CopyFrom(half)
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def outputs_match(model: AgeGenderModel, content: bytes) -> bool:
    """Return whether an ONNX file's outputs match those of its model, within 0.05 years and 0.005 of probability.

    They are compared on random noise and on drawn faces: noise alone does not activate all parts of a network that
    faces do.
    """
    torch_engine = TorchEngine(model, choose_compute("cpu", "fp32"))
    size = torch_engine.input_size
    noise = np.random.default_rng(0).integers(0, 256, (_NOISE_CHECKS, size, size, 3)).astype(np.uint8)
    # From child to old age, women and men.
    faces = [draw_face(100 * n / _FACE_CHECKS, n % 2 == 0, np.random.default_rng(n)) for n in range(_FACE_CHECKS)]
    crops = np.concatenate([noise, np.stack([resize_image(face, size) for face in faces])])
    expected, found = torch_engine.run(crops), OnnxEngine(open_session(content, threads=1), size).run(crops)
    pairs = zip(expected[:3], found[:3], _TOLERANCES, strict=True)
    return all((np.abs(a - b) < tolerance).all() for a, b, tolerance in pairs)


def quantize_model(proto: Any, crops: NDArray[np.uint8], exclude: Collection[Int8Part] = ()) -> Any:
    """Return a float32 ``onnx.ModelProto`` with its products in int8, in the QDQ format, which all runtimes read.

    Static quantization: the ranges of activations (uint8) are those on ``crops``, the scales of weights (int8) are per
    channel. Weights use 7 bits, because CPUs without VNNI add pairs of products in 16 bits, which 8 bits overflow.
    Source: Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018.

    Args:
        proto: the output of :func:`convert_model`.
        crops: RGB faces (N, size, size, 3), as the model gets them.
        exclude: the parts to keep in float32.

    Raises:
        AgegenError: the model cannot be quantized, or has no such part.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        with _silence_exporter(), TemporaryDirectory() as folder:
            plain, prepared, quantized = (Path(folder, f"{step}.onnx") for step in ("plain", "prepared", "quantized"))
            onnx.save(proto, plain)
            # Symbolic shape inference requires SymPy, and helps with transformers only.
            quant_pre_process(plain, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                quantized,
                _make_calibration_reader(crops),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(_QUANTIZED),
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=_list_excluded(onnx.load(prepared), exclude),
            )
            return onnx.load(quantized)
    except AgegenError:
        raise
    except Exception as error:  # onnxruntime's errors have no common class
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AgegenError(f"cannot quantize the model to int8: {shorten(cause)}") from error


def _list_excluded(proto: Any, exclude: Collection[Int8Part]) -> list[str]:
    """Return the names of the operations in the parts to keep in float32.

    Raises:
        AgegenError: a part has no operations.
    """
    products = [node.name for node in proto.graph.node if node.op_type in _PRODUCTS]
    heads = [node.name for node in proto.graph.node if node.name.startswith(f"{Int8Part.HEADS}/")]
    parts = {Int8Part.FIRST: products[:1], Int8Part.HEADS: heads}
    if missing := [name for name in exclude if not parts[name]]:
        raise AgegenError(f"--exclude {missing[0]}: the exported model has no such part")
    return [name for part in exclude for name in parts[part]]


def _make_calibration_reader(crops: NDArray[np.uint8]) -> Any:
    """Return onnxruntime's reader of inputs, over batches of crops."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            starts = range(0, len(crops), _CALIBRATION_BATCH)
            self._batches = iter([{INPUT: crops[start : start + _CALIBRATION_BATCH]} for start in starts])

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            return next(self._batches, None)

    return Reader()
