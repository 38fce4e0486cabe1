import numpy as np
import pytest
from composing import draw_background, paste_face
from PIL import Image

from agegen.data.demo import draw_records
from agegen.data.images import decode_image, resize_image
from agegen.errors import CheckpointError
from agegen.faces.alignment import CROP_SIZE, AlignmentTemplate, align_face, express_in_crop
from agegen.faces.detection import create_detector
from agegen.faces.geometry import apply_matrix, fit_similarity, list_corners
from agegen.faces.matching import survey_pictures


@pytest.fixture(scope="module")
def mtcnn():
    return create_detector("mtcnn")


@pytest.fixture(scope="module")
def photo(portrait):
    return np.asarray(Image.open(portrait).convert("RGB"))


@pytest.fixture(scope="module")
def crops(utkface):
    paths = sorted(utkface.glob("*.jpg"))[::400]
    return [decode_image(path.read_bytes()) for path in paths]


def find_corners(face, detector, contract):
    """The crop's corners (4, 2) in the photograph's pixels, clockwise from its upper left."""
    back = fit_similarity(express_in_crop(detector, contract), face.landmarks)
    return apply_matrix(back, list_corners(1.0))


def measure_offset(crop, detector):
    (face,) = detector.detect(crop)
    return np.abs(face.landmarks / CROP_SIZE - detector.reference).max()


@pytest.mark.parametrize(("side", "turn"), [(60, 0), (120, 30), (120, -30), (400, 10)])
def test_landmarks_come_to_where_the_contract_wants_them(photo, mtcnn, side, turn):
    picture = draw_background(640, 480, np.random.default_rng(0))
    paste_face(picture, photo[60:400, 100:440], (320, 240), side, turn)
    (face,) = mtcnn.detect(picture)
    crop = align_face(picture, face, mtcnn, AlignmentTemplate())
    assert crop.shape == (CROP_SIZE, CROP_SIZE, 3)
    assert measure_offset(crop, mtcnn) < 0.07


@pytest.mark.usefixtures("real_yunet")
def test_detectors_agree_on_the_crop(crops, mtcnn):
    yunet = create_detector("yunet")
    moved = []
    for crop in crops:
        first, second = mtcnn.detect(crop), yunet.detect(crop)
        if len(first) == len(second) == 1:
            corners = [
                find_corners(first[0], mtcnn, AlignmentTemplate()),
                find_corners(second[0], yunet, AlignmentTemplate()),
            ]
            moved.append(corners[0] - corners[1])
    assert len(moved) > len(crops) * 0.8
    # In pixels of a crop of 200: no bias, and little noise.
    assert np.abs(np.median(np.array(moved), axis=0)).max() < 4
    assert np.median(np.abs(np.array(moved))) < 6


def test_aligning_an_aligned_crop_changes_little(crops, mtcnn):
    """The default contract is that of UTKFace: on its crops, alignment is all but the identity."""
    square = np.array([[0, 0], [200, 0], [200, 200], [0, 200]])
    faces = [(crop, mtcnn.detect(crop)) for crop in crops]
    moved = [find_corners(found[0], mtcnn, AlignmentTemplate()) - square for _, found in faces if found]
    assert np.abs(np.median(np.array(moved), axis=0)).max() < 4


def test_the_contract_of_other_crops_is_measured(crops, mtcnn):
    inner = [resize_image(np.ascontiguousarray(crop[20:180, 20:180]), 200) for crop in crops]
    wide, narrow = survey_pictures(crops, mtcnn).contract, survey_pictures(inner, mtcnn).contract
    expected = (np.array(wide.landmarks) - 0.1) / 0.8
    assert np.array(narrow.landmarks) == pytest.approx(expected, abs=0.02)


def test_a_model_of_narrow_crops_gets_narrow_crops(photo, mtcnn):
    narrow = AlignmentTemplate(tuple(((x - 0.1) / 0.8, (y - 0.1) / 0.8) for x, y in AlignmentTemplate().landmarks))
    (face,) = mtcnn.detect(photo)
    outer, inner = (find_corners(face, mtcnn, contract) for contract in (AlignmentTemplate(), narrow))
    sides = [np.hypot(*(corners[1] - corners[0])) for corners in (outer, inner)]
    assert sides[1] / sides[0] == pytest.approx(0.8, abs=0.005)
    assert outer.mean(axis=0) == pytest.approx(inner.mean(axis=0), abs=1)


def test_drawn_faces_have_no_contract(mtcnn):
    records = draw_records(30)
    assert survey_pictures((np.zeros((90, 90, 3), np.uint8) for _ in range(30)), mtcnn).contract is None
    measured = survey_pictures((decode_image(records.read(row)) for row in range(30)), mtcnn).contract
    assert measured is None or len(measured.landmarks) == 5


def test_contracts_survive_json_and_damage_is_named():
    contract = AlignmentTemplate()
    read = AlignmentTemplate.from_json(contract.to_json())
    assert np.array(read.landmarks) == pytest.approx(np.array(contract.landmarks), abs=1e-4)
    for bad in ({}, {"landmarks": [[0, 0]]}, {"landmarks": "x"}, {"landmarks": [[float("nan"), 0]] * 5}, 3):
        with pytest.raises(CheckpointError, match="crop contract"):
            AlignmentTemplate.from_json(bad)
