"""YuNet in onnxruntime finds what OpenCV's own reading of the network finds."""

import cv2
import numpy as np
import pytest
from composing import draw_background, paste_face
from PIL import Image

from agegen.faces.yunet import YuNet, find_yunet_weights


@pytest.mark.usefixtures("real_yunet")
@pytest.mark.parametrize(("width", "height"), [(640, 480), (333, 517), (1000, 70), (64, 64)])
def test_it_finds_what_opencv_finds(portrait, width, height):
    face = np.asarray(Image.open(portrait).convert("RGB"))[60:400, 100:440]
    picture = draw_background(width, height, np.random.default_rng(0))
    for number, side in enumerate((200, 60, 120)):
        paste_face(picture, face, (width * (1 + 2 * number) / 6, height / 2), min(side, height, width / 2), 10 * number)
    oracle = cv2.FaceDetectorYN.create(str(find_yunet_weights()), "", (width, height), 0.5, 0.3, 500)
    _, rows = oracle.detect(np.ascontiguousarray(picture[:, :, ::-1]))
    rows = np.zeros((0, 15)) if rows is None else rows
    found = YuNet().search(picture, close=False)
    assert len(found) == len(rows)
    if width == 640:
        assert len(found) == 3
    for face, row in zip(sorted(found, key=lambda face: -face.score), rows[np.argsort(-rows[:, 14])], strict=True):
        left, top, across, down = row[:4]
        assert face.score == pytest.approx(row[14], abs=1e-3)
        assert face.box == pytest.approx((left, top, left + across, top + down), abs=0.5)
        assert face.landmarks.ravel() == pytest.approx(row[4:14], abs=0.5)
