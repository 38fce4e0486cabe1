"""Faces that a single pass misses: in tight crops, rotated images, very large ones, small ones in large images."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from composing import draw_background, paste_face
from conftest import require_shared
from PIL import Image

from agegen.errors import AgegenError
from agegen.faces.detection import create_detector
from agegen.faces.geometry import DetectedFace
from agegen.faces.mtcnn import MTCNN
from agegen.faces.refinement import find_faces, merge_scales, remove_duplicates, resize_for_detection
from agegen.predict.estimator import Estimator


@pytest.fixture(scope="module")
def photo(portrait):
    return np.asarray(Image.open(portrait).convert("RGB"))


@pytest.fixture(scope="module")
def mtcnn():
    return create_detector("mtcnn")


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_faces_in_rotated_images_are_found(mtcnn, photo, quarters):
    rotated = np.ascontiguousarray(np.rot90(photo, quarters))
    (face,), turn = find_faces(mtcnn, rotated)
    assert turn == 90 * quarters
    (upright,) = mtcnn.detect(photo)
    # Coordinates are in pixels of the rotated image; rotated back, they are those of the upright one.
    height, width = photo.shape[:2]
    x, y = upright.landmarks[:, 0], upright.landmarks[:, 1]
    expected = {0: (x, y), 1: (y, width - 1 - x), 2: (width - 1 - x, height - 1 - y), 3: (height - 1 - y, x)}[quarters]
    assert face.landmarks == pytest.approx(np.stack(expected, axis=1), abs=4)
    left, top, right, bottom = face.box
    assert left < face.landmarks[:, 0].min() < face.landmarks[:, 0].max() < right
    assert top < face.landmarks[:, 1].min() < face.landmarks[:, 1].max() < bottom


def test_a_rotated_portrait_gets_the_estimate_of_the_upright_one(photo):
    estimator = Estimator.load()
    (upright,) = estimator.predict(photo)
    (rotated,) = estimator.predict(np.rot90(photo))
    assert (upright.turn, rotated.turn) == (0, 90)
    assert rotated.age == pytest.approx(upright.age, abs=3)
    assert estimator.predict(draw_background(300, 200, np.random.default_rng(0))) == []


class NeverCertain(MTCNN):
    """A detector without a score from which on faces are upright, which counts its searches."""

    upright_score, upright_refined_score = 2.0, 2.0

    def __init__(self):
        super().__init__()
        self.searches = 0

    def detect(self, image):
        self.searches += 1
        return super().detect(image)


def test_rotated_close_ups_of_an_upright_face_end_the_search(photo):
    detector = NeverCertain()
    (face,), turn = find_faces(detector, photo)
    assert (turn, detector.searches) == (0, 1)
    assert detector.scores_best_upright(photo, face)
    # Faces that their close-ups do not confirm are no evidence.
    assert not detector.scores_best_upright(photo, replace(face, refined_score=None))
    assert not detector.scores_best_upright(photo, replace(face, refined_score=0.9))


def test_a_face_that_scores_higher_upside_down_is_not_taken_for_upright(photo):
    upside_down = np.ascontiguousarray(photo[::-1, ::-1])
    (face,) = MTCNN().detect(photo)
    height, width = photo.shape[:2]
    # As a detector would find it that takes the mouth for the eyes.
    marks = np.array([width - 1, height - 1]) - face.landmarks
    wrong = replace(face, landmarks=marks[[4, 3, 2, 1, 0]], refined_score=0.996)
    assert not MTCNN().scores_best_upright(upside_down, wrong)


class CountingDetector:
    """A detector that finds a face only in images of one shape, and counts its calls."""

    name, reference = "counting", np.array([[0.3, 0.3], [0.7, 0.3], [0.5, 0.5], [0.35, 0.7], [0.65, 0.7]])

    def __init__(self, shape, score=0.95):
        self.shape, self.score, self.searched = shape, score, []

    def detect(self, image):
        self.searched.append(image.shape[:2])
        if image.shape[:2] != self.shape:
            return []
        return [DetectedFace((10.0, 10.0, 50.0, 50.0), self.reference * 40 + 10, self.score)]


def test_an_upright_face_ends_the_search():
    detector = CountingDetector((60, 80))
    assert find_faces(detector, np.zeros((60, 80, 3), np.uint8))[1] == 0
    assert detector.searched == [(60, 80)]


def test_coordinates_do_not_include_the_margin():
    detector = CountingDetector((100, 120))
    (face,), turn = find_faces(detector, np.zeros((60, 80, 3), np.uint8))
    assert turn == 0
    assert face.box == (-10.0, -10.0, 30.0, 30.0)
    assert face.landmarks == pytest.approx(detector.reference * 40 - 10)


def test_low_scores_in_rotated_images_are_ignored():
    for score, count in ((0.95, 1), (0.7, 0)):
        faces, turn = find_faces(CountingDetector((80, 60), score), np.zeros((60, 80, 3), np.uint8))
        assert len(faces) == count
        assert turn == (90 if count else 0)


def make_face(left, top, side, score=0.9):
    return DetectedFace((left, top, left + side, top + side), np.full((5, 2), left + side / 2), score)


def test_parts_of_a_large_face_are_dropped():
    whole, eye, cheek, other = make_face(0, 0, 200), make_face(20, 20, 60), make_face(90, 90, 90), make_face(300, 0, 60)
    assert merge_scales([eye, cheek, other], [whole]) == [other, whole]
    # Of a face that both passes found, the fine detection is kept.
    fine = make_face(2, 2, 198)
    assert merge_scales([fine, other], [whole]) == [fine, other]
    assert merge_scales([], [whole]) == [whole]
    assert merge_scales([eye], []) == [eye]


def test_faces_with_the_same_landmarks_are_one():
    points = np.array([[30.0, 30], [70, 30], [50, 50], [35, 70], [65, 70]])
    faces = [
        DetectedFace((0, 0, 100, 100), points, 0.9),
        DetectedFace((5, 5, 105, 105), points + 4, 0.95),
        DetectedFace((200, 0, 300, 100), points + [200, 0], 0.8),
    ]
    assert [face.score for face in remove_duplicates(faces)] == [0.95, 0.8]


def test_detection_size_is_bounded():
    small, scale = resize_for_detection(np.zeros((3000, 4000, 3), np.uint8), 1280)
    assert small.shape == (960, 1280, 3)
    assert scale == pytest.approx(0.32)
    assert resize_for_detection(np.zeros((100, 120, 3), np.uint8), 1280)[1] == 2.0
    assert resize_for_detection(np.zeros((600, 800, 3), np.uint8), 1280)[1] == 1.0


@pytest.mark.usefixtures("real_yunet")
@pytest.mark.parametrize("side", [400, 1300, 2400])
def test_yunet_finds_one_face_in_a_large_portrait(photo, side):
    """At 1280 pixels its network finds two faces in it."""
    head = photo[60:400, 100:440]
    large = cv2.resize(head, (side, side), interpolation=cv2.INTER_CUBIC)
    (face,) = create_detector("yunet").detect(large)
    left_eye, right_eye = face.landmarks[:2] * 340 / side + (100, 60)
    assert left_eye == pytest.approx((220, 187), abs=15)
    assert right_eye == pytest.approx((304, 185), abs=15)


@pytest.mark.real
@pytest.mark.usefixtures("real_yunet")
def test_a_photo_of_an_old_camera_is_rotated():
    path = require_shared("trials/inputs/pictures/turned_90_no_exif.jpg")
    for detector in ("mtcnn", "yunet"):
        (face,) = Estimator.load(detector=detector).predict(path)
        assert face.turn in (90, 270)


def compose_group(photo, width, height, side, count):
    """Return a photo with ``count`` faces in rows whose bounding boxes are about ``side`` pixels wide."""
    head = photo[60:400, 100:440]
    image = draw_background(width, height, np.random.default_rng(0))
    # The bounding box has about half of the crop's width.
    crop, columns = side * 2.0, int(width // (side * 3))
    for number in range(count):
        place = ((number % columns + 0.6) * side * 3, (number // columns + 0.6) * side * 3)
        paste_face(image, head, place, crop)
    return image


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mtcnn", "yunet"])
def test_min_face_finds_small_faces_in_a_large_image(request, photo, name):
    if name == "yunet":
        request.getfixturevalue("real_yunet")
    image = compose_group(photo, 4000, 2600, 36, 40)
    assert len(Estimator.load(detector=name, min_face=28).predict(image)) >= 38
    # By default an image is searched at about 1000 pixels, where these faces are 9 pixels wide.
    if name == "mtcnn":
        assert len(Estimator.load(detector=name).predict(image)) < 30
    # Smaller faces than min_face are dropped.
    assert Estimator.load(detector=name, min_face=300).predict(image) == []
    with pytest.raises(AgegenError, match="--min-face must be at least 1 pixel"):
        Estimator.load(min_face=0)
