"""Detectors, agegen's own and those of other packages: found by name, checked, and named in errors."""

import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
from composing import draw_background, paste_face
from PIL import Image

from agegen.errors import AgegenError, PluginError
from agegen.faces.detection import create_detector, list_detectors
from agegen.faces.geometry import DetectedFace, compute_rotation, fit_similarity
from agegen.faces.mtcnn import MTCNN
from agegen.faces.yunet import YuNet
from agegen.predict.estimator import Estimator
from agegen.testing import check_detector


@pytest.fixture(params=["mtcnn", "yunet"])
def detector(request):
    if request.param == "yunet":
        request.getfixturevalue("real_yunet")
    return create_detector(request.param)


@pytest.fixture(scope="module")
def photo(portrait):
    return np.asarray(Image.open(portrait).convert("RGB"))


def test_the_portrait_has_one_face_with_correct_landmarks(detector, photo):
    (face,) = detector.detect(photo)
    left, top, right, bottom = face.box
    assert (left, top, right, bottom) == pytest.approx((175, 115, 355, 335), abs=20)
    left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
    assert left_eye == pytest.approx((220, 187), abs=12)
    assert right_eye == pytest.approx((304, 185), abs=12)
    assert left_eye[1] < nose[1] < left_mouth[1]
    assert left_mouth[0] < nose[0] < right_mouth[0]
    assert 0.5 < face.score <= 1


@pytest.mark.parametrize("degrees", [-30, -15, 15, 30])
def test_landmarks_follow_the_tilt(detector, photo, degrees):
    (upright,) = detector.detect(photo)
    head = photo[60:400, 100:440]
    image = draw_background(640, 480, np.random.default_rng(0))
    paste_face(image, head, (320, 240), 200, degrees)
    (face,) = detector.detect(image)
    before = compute_rotation(fit_similarity(detector.reference, upright.landmarks))
    after = compute_rotation(fit_similarity(detector.reference, face.landmarks))
    assert after - before == pytest.approx(degrees, abs=6)


def test_a_face_of_24_pixels_is_found(detector, photo):
    # The portrait's face is about 200 pixels high.
    small = cv2.resize(photo, None, fx=0.12, fy=0.12, interpolation=cv2.INTER_AREA)
    image = draw_background(200, 150, np.random.default_rng(1))
    image[40 : 40 + small.shape[0], 70 : 70 + small.shape[1]] = small
    (face,) = detector.detect(image)
    assert face.landmarks.mean(axis=0) == pytest.approx((70 + 262 * 0.12, 40 + 225 * 0.12), abs=4)


def test_a_face_partly_out_of_frame_is_found(detector, photo):
    (face,) = detector.detect(photo[:, 205:])
    assert face.box[0] < 20


def test_faces_are_ordered_from_left_to_right(detector, photo):
    three = np.concatenate([photo, photo, photo], axis=1)
    faces = detector.detect(three)
    assert [int(face.landmarks[:, 0].mean() // 512) for face in faces] == [0, 1, 2]


def test_no_face_in_blotches(detector):
    for seed in range(5):
        assert detector.detect(draw_background(640, 480, np.random.default_rng(seed))) == []


def test_extreme_sizes_have_no_face(detector):
    for shape in ((1, 1), (3, 400), (400, 3), (12, 12), (31, 57)):
        assert detector.detect(np.full((*shape, 3), 128, np.uint8)) == []


def test_unknown_detectors_are_refused():
    with pytest.raises(AgegenError, match=r"unknown detector: 'dlib'\. Choose one of mtcnn, yunet, none\."):
        create_detector("dlib")


def test_mtcnn_passes_the_contract_test():
    check_detector(MTCNN)


@pytest.mark.usefixtures("real_yunet")
def test_yunet_passes_the_contract_test():
    check_detector(YuNet)


class RightToLeft(MTCNN):
    def detect(self, image):
        return super().detect(image)[::-1]


class WrongReference(MTCNN):
    reference = MTCNN.reference + 0.15


class ChangesImage(MTCNN):
    def detect(self, image):
        found = super().detect(image)
        image[0] = 0
        return found


class FindsFacesEverywhere(MTCNN):
    def detect(self, image):
        face = DetectedFace((0, 0, 2, 2), np.ones((5, 2)), 0.9)
        return super().detect(image) or [replace(face, landmarks=np.full((5, 2), 1.0))]


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        (RightToLeft, "the faces are not ordered from left to right"),
        (WrongReference, "`reference` does not match its landmarks"),
        (ChangesImage, "it modifies the image"),
        (FindsFacesEverywhere, "it detects a face in a uniform gray image"),
        (type("Nameless", (MTCNN,), {"name": None}), r"Nameless\.name must be a str"),
        (type("BadShape", (MTCNN,), {"reference": np.zeros((5, 3))}), r"BadShape\.reference must be five landmarks"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_broken_detectors_fail_the_contract_test_with_one_line(detector, message):
    with pytest.raises(AssertionError, match=message) as caught:
        check_detector(detector)
    assert len(str(caught.value).splitlines()) == 1


def write_package(folder, body):
    """Write an installed distribution that provides a detector; return its folder for sys.path."""
    (folder / "theirs.py").write_text(body)
    info = folder / "their_detector-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-detector\nVersion: 2.1\n")
    (info / "entry_points.txt").write_text("[agegen.detectors]\ntheirs = theirs:Theirs\n")
    return folder


VALID = "from agegen.faces.mtcnn import MTCNN\nclass Theirs(MTCNN):\n    name = 'theirs'\n"


def test_a_detector_of_another_package_is_used(tmp_path, monkeypatch, portrait):
    monkeypatch.syspath_prepend(str(write_package(tmp_path, VALID)))
    assert list_detectors() == ["mtcnn", "theirs", "yunet"]
    assert create_detector("theirs").name == "theirs"
    (face,) = Estimator.load(detector="theirs").predict(portrait)
    assert face.age > 40


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("def Theirs():\n    raise OSError('weights are gone')", "OSError: weights are gone"),
        ("class Theirs:\n    name = 'theirs'", r"Theirs\.reference must be five landmarks"),
    ],
)
def test_errors_name_the_package_of_a_broken_detector(tmp_path, monkeypatch, body, message):
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    monkeypatch.syspath_prepend(str(write_package(tmp_path, body)))
    with pytest.raises(PluginError, match=rf"detector 'theirs' of their-detector 2\.1:? .*{message}") as caught:
        create_detector("theirs")
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(AgegenError, match="Choose one of mtcnn, theirs, yunet, none"):
        create_detector("ours")
