"""Faces that a plain look misses: in tight crops and turned pictures, very large ones, small ones in large pictures."""

import cv2
import numpy as np
import pytest
from composing import draw_background, paste_face
from conftest import require_shared
from PIL import Image

from agegen.errors import AgegenError
from agegen.faces.detection import create_detector
from agegen.faces.geometry import DetectedFace
from agegen.faces.refinement import find_faces, join_sizes
from agegen.predict.estimator import Estimator


@pytest.fixture(scope="module")
def photo(portrait):
    return np.asarray(Image.open(portrait).convert("RGB"))


@pytest.fixture(scope="module")
def mtcnn():
    return create_detector("mtcnn")


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_turned_pictures_are_turned_back(mtcnn, photo, quarters):
    turned = np.ascontiguousarray(np.rot90(photo, quarters))
    (face,), turn = find_faces(mtcnn, turned)
    assert turn == 90 * quarters
    (upright,) = mtcnn.detect(photo)
    # In the turned picture's own pixels: turned back, they are the upright ones.
    height, width = photo.shape[:2]
    x, y = upright.landmarks[:, 0], upright.landmarks[:, 1]
    back = {0: (x, y), 1: (y, width - 1 - x), 2: (width - 1 - x, height - 1 - y), 3: (height - 1 - y, x)}[quarters]
    assert face.landmarks == pytest.approx(np.stack(back, axis=1), abs=4)
    left, top, right, bottom = face.box
    assert left < face.landmarks[:, 0].min() < face.landmarks[:, 0].max() < right
    assert top < face.landmarks[:, 1].min() < face.landmarks[:, 1].max() < bottom


def test_a_turned_portrait_is_estimated_as_the_upright_one(photo):
    estimator = Estimator.load()
    (upright,) = estimator.predict(photo)
    (turned,) = estimator.predict(np.rot90(photo))
    assert (upright.turn, turned.turn) == (0, 90)
    assert turned.age == pytest.approx(upright.age, abs=3)
    assert estimator.predict(draw_background(300, 200, np.random.default_rng(0))) == []


class Counting:
    """A detector that finds faces only in pictures of one shape."""

    name, reference = "counting", np.array([[0.3, 0.3], [0.7, 0.3], [0.5, 0.5], [0.35, 0.7], [0.65, 0.7]])

    def __init__(self, shape, score=0.95):
        self.shape, self.score, self.looks = shape, score, []

    def detect(self, image):
        self.looks.append(image.shape[:2])
        if image.shape[:2] != self.shape:
            return []
        return [DetectedFace((10.0, 10.0, 50.0, 50.0), self.reference * 40 + 10, self.score)]


def test_what_is_found_at_once_is_not_searched_for_again():
    detector = Counting((60, 80))
    assert find_faces(detector, np.zeros((60, 80, 3), np.uint8))[1] == 0
    assert detector.looks == [(60, 80)]


def test_a_margin_helps_tight_crops_and_is_taken_off_again():
    detector = Counting((100, 120))
    (face,), turn = find_faces(detector, np.zeros((60, 80, 3), np.uint8))
    assert turn == 0
    assert face.box == (-10.0, -10.0, 30.0, 30.0)
    assert face.landmarks == pytest.approx(detector.reference * 40 - 10)


def test_doubtful_finds_in_turned_pictures_are_none():
    for score, found in ((0.95, 1), (0.7, 0)):
        faces, turn = find_faces(Counting((80, 60), score), np.zeros((60, 80, 3), np.uint8))
        assert len(faces) == found
        assert turn == (90 if found else 0)


def make_face(left, top, side, score=0.9):
    return DetectedFace((left, top, left + side, top + side), np.full((5, 2), left + side / 2), score)


def test_parts_of_a_large_face_are_none():
    whole, eye, cheek, other = make_face(0, 0, 200), make_face(20, 20, 60), make_face(90, 90, 90), make_face(300, 0, 60)
    assert join_sizes([eye, cheek, other], [whole]) == [other, whole]
    # What both searches found stays the fine one's.
    fine = make_face(2, 2, 198)
    assert join_sizes([fine, other], [whole]) == [fine, other]
    assert join_sizes([], [whole]) == [whole]
    assert join_sizes([eye], []) == [eye]


@pytest.mark.usefixtures("real_yunet")
@pytest.mark.parametrize("side", [400, 1300, 2400])
def test_yunet_sees_a_portrait_as_one_face(photo, side):
    """At 1280 pixels it saw two faces in one."""
    head = photo[60:400, 100:440]
    large = cv2.resize(head, (side, side), interpolation=cv2.INTER_CUBIC)
    (face,) = create_detector("yunet").detect(large)
    left_eye, right_eye = face.landmarks[:2] * 340 / side + (100, 60)
    assert left_eye == pytest.approx((220, 187), abs=15)
    assert right_eye == pytest.approx((304, 185), abs=15)


@pytest.mark.real
@pytest.mark.usefixtures("real_yunet")
def test_a_photograph_of_an_old_camera_is_turned():
    turned = require_shared("trials/inputs/pictures/turned_90_no_exif.jpg")
    for detector in ("mtcnn", "yunet"):
        (face,) = Estimator.load(detector=detector).predict(turned)
        assert face.turn in (90, 270)


def compose_group(photo, width, height, side, count):
    """Return a photograph with ``count`` faces whose boxes are about ``side`` pixels wide, in rows."""
    head = photo[60:400, 100:440]
    picture = draw_background(width, height, np.random.default_rng(0))
    # A detector's box has about half of the crop's width.
    crop, columns = side * 2.0, int(width // (side * 3))
    for number in range(count):
        place = ((number % columns + 0.6) * side * 3, (number // columns + 0.6) * side * 3)
        paste_face(picture, head, place, crop)
    return picture


@pytest.mark.parametrize("name", ["mtcnn", "yunet"])
def test_small_faces_in_a_large_picture_are_found_on_request(request, photo, name):
    if name == "yunet":
        request.getfixturevalue("real_yunet")
    picture = compose_group(photo, 4000, 2600, 36, 40)
    wanted = Estimator.load(detector=name, min_face=28)
    found = wanted.predict(picture)
    assert len(found) >= 38
    # By itself it searches at some 1000 pixels, where these are 9 pixels wide.
    if name == "mtcnn":
        assert len(Estimator.load(detector=name).predict(picture)) < 30
    # Larger ones than are there: nothing is left, and the search is a small one.
    assert Estimator.load(detector=name, min_face=300).predict(picture) == []
    with pytest.raises(AgegenError, match="--min-face must be at least 1 pixel"):
        Estimator.load(min_face=0)
