"""YuNet in onnxruntime gives the detections of OpenCV's own decoder; only the known file of weights is loaded."""

import cv2
import huggingface_hub.constants as constants
import numpy as np
import pytest
from composing import draw_background, paste_face
from PIL import Image

from agegen.errors import AgegenError
from agegen.faces.yunet import YUNET_FILE, YuNet, check_weights, find_yunet_weights


@pytest.mark.usefixtures("real_yunet")
@pytest.mark.parametrize(("width", "height"), [(640, 480), (333, 517), (1000, 70), (64, 64)])
def test_detections_are_those_of_opencv(portrait, width, height):
    face = np.asarray(Image.open(portrait).convert("RGB"))[60:400, 100:440]
    image = draw_background(width, height, np.random.default_rng(0))
    for number, side in enumerate((200, 60, 120)):
        paste_face(image, face, (width * (1 + 2 * number) / 6, height / 2), min(side, height, width / 2), 10 * number)
    oracle = cv2.FaceDetectorYN.create(str(find_yunet_weights()), "", (width, height), 0.5, 0.3, 500)
    _, rows = oracle.detect(np.ascontiguousarray(image[:, :, ::-1]))
    rows = np.zeros((0, 15)) if rows is None else rows
    found = YuNet().run_network(image, close_up=False)
    assert len(found) == len(rows)
    if width == 640:
        assert len(found) == 3
    for face, row in zip(sorted(found, key=lambda face: -face.score), rows[np.argsort(-rows[:, 14])], strict=True):
        left, top, across, down = row[:4]
        assert face.score == pytest.approx(row[14], abs=1e-3)
        assert face.box == pytest.approx((left, top, left + across, top + down), abs=0.5)
        assert face.landmarks.ravel() == pytest.approx(row[4:14], abs=0.5)


@pytest.mark.usefixtures("real_yunet")
def test_weights_come_from_the_cache():
    assert find_yunet_weights().name == YUNET_FILE


def test_missing_weights_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(AgegenError, match="Or use --detector mtcnn"):
        find_yunet_weights()


def test_another_file_with_the_same_name_is_refused(tmp_path):
    (tmp_path / "yunet.onnx").write_bytes(b"something else")
    with pytest.raises(AgegenError, match="is not the expected YuNet file"):
        check_weights(tmp_path / "yunet.onnx")
