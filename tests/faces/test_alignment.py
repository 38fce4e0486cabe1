import numpy as np
import pytest
from composing import draw_background, paste_face
from PIL import Image

from agegen.data.images import decode_image
from agegen.errors import CheckpointError
from agegen.faces.alignment import CROP_SIZE, AlignmentTemplate, align_face, compute_target_landmarks
from agegen.faces.detection import create_detector
from agegen.faces.geometry import apply_matrix, fit_similarity, list_corners


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


def find_corners(face, detector, template):
    """Return the corners of a face's crop (4, 2) in pixels of the photo, clockwise from the upper left."""
    inverse = fit_similarity(compute_target_landmarks(detector, template), face.landmarks)
    return apply_matrix(inverse, list_corners(1.0))


def measure_offset(crop, detector):
    (face,) = detector.detect(crop)
    return np.abs(face.landmarks / CROP_SIZE - detector.reference).max()


@pytest.mark.parametrize(("side", "degrees"), [(60, 0), (120, 30), (120, -30), (400, 10)])
def test_aligned_crops_have_the_landmarks_of_the_template(photo, mtcnn, side, degrees):
    image = draw_background(640, 480, np.random.default_rng(0))
    paste_face(image, photo[60:400, 100:440], (320, 240), side, degrees)
    (face,) = mtcnn.detect(image)
    crop = align_face(image, face, mtcnn, AlignmentTemplate())
    assert crop.shape == (CROP_SIZE, CROP_SIZE, 3)
    assert measure_offset(crop, mtcnn) < 0.07


@pytest.mark.usefixtures("real_yunet")
def test_detectors_agree_on_the_crop(crops, mtcnn):
    yunet = create_detector("yunet")
    differences = []
    for crop in crops:
        first, second = mtcnn.detect(crop), yunet.detect(crop)
        if len(first) == len(second) == 1:
            corners = [
                find_corners(first[0], mtcnn, AlignmentTemplate()),
                find_corners(second[0], yunet, AlignmentTemplate()),
            ]
            differences.append(corners[0] - corners[1])
    assert len(differences) > len(crops) * 0.8
    # In pixels of a crop of 200: no bias and little noise.
    assert np.abs(np.median(np.array(differences), axis=0)).max() < 4
    assert np.median(np.abs(np.array(differences))) < 6


def test_aligning_an_aligned_crop_changes_little(crops, mtcnn):
    """The default template is that of UTKFace: on its crops, alignment is almost the identity."""
    square = np.array([[0, 0], [200, 0], [200, 200], [0, 200]])
    faces = [(crop, mtcnn.detect(crop)) for crop in crops]
    moved = [find_corners(found[0], mtcnn, AlignmentTemplate()) - square for _, found in faces if found]
    assert np.abs(np.median(np.array(moved), axis=0)).max() < 4


def test_a_narrower_template_gives_narrower_crops(photo, mtcnn):
    narrow = AlignmentTemplate(tuple(((x - 0.1) / 0.8, (y - 0.1) / 0.8) for x, y in AlignmentTemplate().landmarks))
    (face,) = mtcnn.detect(photo)
    outer, inner = (find_corners(face, mtcnn, template) for template in (AlignmentTemplate(), narrow))
    sides = [np.hypot(*(corners[1] - corners[0])) for corners in (outer, inner)]
    assert sides[1] / sides[0] == pytest.approx(0.8, abs=0.005)
    assert outer.mean(axis=0) == pytest.approx(inner.mean(axis=0), abs=1)


def test_templates_survive_json_and_invalid_content_is_reported():
    template = AlignmentTemplate()
    read = AlignmentTemplate.from_json(template.to_json())
    assert np.array(read.landmarks) == pytest.approx(np.array(template.landmarks), abs=1e-4)
    for bad in (
        {},
        {"landmarks": [[0, 0]]},
        {"landmarks": "x"},
        {"landmarks": [[float("nan"), 0]] * 5},
        {"landmarks": [[0.5, 0.5]] * 5},
        3,
    ):
        with pytest.raises(CheckpointError, match="invalid alignment template"):
            AlignmentTemplate.from_json(bad)
