import cv2
import numpy as np
import pytest
from composing import draw_background, paste_face
from PIL import Image

from agegen.errors import AgegenError
from agegen.faces.detection import create_detector
from agegen.faces.geometry import fit_similarity, measure_turn
from agegen.faces.refinement import scale_for_search
from agegen.faces.yunet import YUNET_FILE, find_yunet_weights


@pytest.fixture(params=["mtcnn", "yunet"])
def detector(request):
    if request.param == "yunet":
        request.getfixturevalue("real_yunet")
    return create_detector(request.param)


@pytest.fixture(scope="module")
def photo(portrait):
    return np.asarray(Image.open(portrait).convert("RGB"))


def test_the_portrait_has_one_face_with_its_landmarks_in_place(detector, photo):
    (face,) = detector.detect(photo)
    left, top, right, bottom = face.box
    assert (left, top, right, bottom) == pytest.approx((175, 115, 355, 335), abs=20)
    left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
    assert left_eye == pytest.approx((220, 187), abs=12)
    assert right_eye == pytest.approx((304, 185), abs=12)
    assert left_eye[1] < nose[1] < left_mouth[1]
    assert left_mouth[0] < nose[0] < right_mouth[0]
    assert 0.5 < face.score <= 1


@pytest.mark.parametrize("turn", [-30, -15, 15, 30])
def test_landmarks_follow_the_tilt(detector, photo, turn):
    (upright,) = detector.detect(photo)
    face_crop = photo[60:400, 100:440]
    picture = draw_background(640, 480, np.random.default_rng(0))
    paste_face(picture, face_crop, (320, 240), 200, turn)
    (face,) = detector.detect(picture)
    before = measure_turn(fit_similarity(detector.reference, upright.landmarks))
    after = measure_turn(fit_similarity(detector.reference, face.landmarks))
    assert after - before == pytest.approx(turn, abs=6)


def test_a_face_of_24_pixels_is_found(detector, photo):
    # The portrait's face is some 200 pixels high.
    small = cv2.resize(photo, None, fx=0.12, fy=0.12, interpolation=cv2.INTER_AREA)
    picture = draw_background(200, 150, np.random.default_rng(1))
    picture[40 : 40 + small.shape[0], 70 : 70 + small.shape[1]] = small
    (face,) = detector.detect(picture)
    assert face.landmarks.mean(axis=0) == pytest.approx((70 + 262 * 0.12, 40 + 225 * 0.12), abs=4)


def test_a_face_partly_out_of_frame_is_found(detector, photo):
    (face,) = detector.detect(photo[:, 205:])
    assert face.box[0] < 20


def test_faces_come_from_left_to_right(detector, photo):
    three = np.concatenate([photo, photo, photo], axis=1)
    faces = detector.detect(three)
    assert [int(face.landmarks[:, 0].mean() // 512) for face in faces] == [0, 1, 2]


def test_no_face_in_blotches(detector):
    for seed in range(5):
        assert detector.detect(draw_background(640, 480, np.random.default_rng(seed))) == []


def test_odd_sizes_do_no_harm(detector):
    for shape in ((1, 1), (3, 400), (400, 3), (12, 12), (31, 57)):
        assert detector.detect(np.full((*shape, 3), 128, np.uint8)) == []


def test_search_size_is_bounded():
    small, scale = scale_for_search(np.zeros((3000, 4000, 3), np.uint8), 1280)
    assert small.shape == (960, 1280, 3)
    assert scale == pytest.approx(0.32)
    assert scale_for_search(np.zeros((100, 120, 3), np.uint8), 1280)[1] == 2.0
    assert scale_for_search(np.zeros((600, 800, 3), np.uint8), 1280)[1] == 1.0


def test_unknown_detectors_are_refused():
    with pytest.raises(AgegenError, match="no detector is called 'dlib'; --detector is one of mtcnn, yunet, none"):
        create_detector("dlib")


def test_missing_weights_say_what_to_do(tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(AgegenError, match="--detector mtcnn needs no download"):
        find_yunet_weights()


@pytest.mark.usefixtures("real_yunet")
def test_weights_come_from_the_cache():
    assert find_yunet_weights().name == YUNET_FILE
