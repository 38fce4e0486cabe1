"""Datasets with different crops are brought to the same one."""

import cv2
import numpy as np
import pytest

from agegen.data.demo import draw_records
from agegen.data.images import decode_image, resize_image
from agegen.data.loading import load_sources
from agegen.errors import CheckpointError
from agegen.faces.alignment import AlignmentTemplate
from agegen.faces.detection import create_detector
from agegen.faces.matching import (
    LandmarkStats,
    load_cropped,
    make_crop_notices,
    make_margin_notices,
    match_crops,
    measure_dataset,
    measure_images,
    read_crop_boxes,
)
from agegen.options import DEFAULT_READ_OPTIONS


@pytest.fixture(scope="module")
def mtcnn():
    return create_detector("mtcnn")


@pytest.fixture(scope="module")
def wider(utkface, tmp_path_factory):
    """UTKFace twice: unchanged, and with a tenth of the side added around each face."""
    root = tmp_path_factory.mktemp("crops")
    for name in ("plain", "wider"):
        (root / name).mkdir()
    for path in sorted(utkface.iterdir())[::450]:
        (root / "plain" / path.name).symlink_to(path)
        image = cv2.imread(str(path))
        image = cv2.copyMakeBorder(image, 20, 20, 20, 20, cv2.BORDER_REFLECT)
        cv2.imwrite(str(root / "wider" / path.name), image)
    return root


def test_the_template_of_other_crops_is_measured(utkface, mtcnn):
    crops = [decode_image(path.read_bytes()) for path in sorted(utkface.glob("*.jpg"))[::400]]
    inner = [resize_image(np.ascontiguousarray(crop[20:180, 20:180]), 200) for crop in crops]
    wide, narrow = measure_images(crops, mtcnn).template, measure_images(inner, mtcnn).template
    expected = (np.array(wide.landmarks) - 0.1) / 0.8
    assert np.array(narrow.landmarks) == pytest.approx(expected, abs=0.02)


def test_drawn_faces_have_no_template(mtcnn):
    records = draw_records(30)
    assert measure_images((np.zeros((90, 90, 3), np.uint8) for _ in range(30)), mtcnn).template is None
    template = measure_images((decode_image(records.read(row)) for row in range(30)), mtcnn).template
    assert template is None or len(template.landmarks) == 5


def test_a_wider_dataset_is_cropped_like_the_first(wider):
    boxes = match_crops(load_sources((str(wider / "plain"), str(wider / "wider"))))
    assert list(boxes) == ["wider"]
    box = boxes["wider"]
    assert box.side == pytest.approx(200 / 240, abs=0.02)
    assert (box.left, box.top) == pytest.approx((20 / 240, 20 / 240), abs=0.015)
    assert read_crop_boxes({"wider": vars(box)}) == boxes


def test_a_single_dataset_is_unchanged_without_a_template(wider):
    records = load_sources((str(wider / "wider"),))
    assert match_crops(records) == {}
    box = match_crops(records, AlignmentTemplate())[records.source]
    assert box.side == pytest.approx(200 / 240, abs=0.03)
    assert match_crops(load_sources((str(wider / "plain"),)), AlignmentTemplate()) == {}


@pytest.fixture(scope="module")
def margins(utkface, tmp_path_factory):
    """30 crops of UTKFace: unchanged, cut tightly to the middle 56 %, and with faces of a third of their size."""
    root = tmp_path_factory.mktemp("margins")
    for name in ("plain", "tight", "wide", "tiny"):
        (root / name).mkdir()
    for path in [path for path in sorted(utkface.iterdir()) if not path.name.startswith(("0_", "1_"))][::650]:
        image = cv2.imread(str(path))
        cv2.imwrite(str(root / "plain" / path.name), image)
        cv2.imwrite(str(root / "tight" / path.name), cv2.resize(image[44:156, 44:156], (200, 200)))
        for name, added in (("wide", 200), ("tiny", 350)):
            framed = cv2.copyMakeBorder(image, added, added, added, added, cv2.BORDER_REPLICATE)
            cv2.imwrite(str(root / name / path.name), framed)
    return root


@pytest.mark.slow
def test_wide_crops_are_trimmed_and_others_reported(margins):
    box = match_crops(load_sources((str(margins / "wide"),)), AlignmentTemplate())[str(margins / "wide")]
    assert box.side == pytest.approx(1 / 3, abs=0.02)
    for name, text in (("tight", "times larger than the model expects"), ("tiny", "times smaller than the model")):
        measured = []
        assert match_crops(load_sources((str(margins / name),)), AlignmentTemplate(), measured) == {}
        (notice,) = make_margin_notices(measured[0], AlignmentTemplate())
        assert text in notice
    records = load_cropped((str(margins / "plain"), str(margins / "tight")), DEFAULT_READ_OPTIONS, None)
    assert "faces of tight are" in records.notices[-1]


@pytest.mark.slow
def test_predict_without_detection_reports_crops_of_other_margins(margins, agegen):
    reported = {}
    for name in ("plain", "tight", "wide"):
        done = agegen("predict", margins / name, "--no-detect", "--model", "compact")
        reported[name] = "than the model expects" in done.stderr
    assert reported == {"plain": False, "tight": True, "wide": True}


@pytest.mark.slow
def test_eval_says_that_training_faces_in_other_crops_are_not_recognized(margins, agegen):
    for name in ("plain", "tight"):
        done = agegen("eval", "--model", "compact", "--data", margins / name, "--split", "all")
        assert ("only recognized in images that are cropped like its own" in done.stderr) == (name == "tight")


@pytest.mark.slow
def test_data_check_reports_crops_of_other_margins(margins, agegen):
    assert "have 33 % of the size" in " ".join(agegen("data", "check", margins / "wide").stdout.split())
    assert "times larger than the model expects" in " ".join(agegen("data", "check", margins / "tight").stdout.split())


def test_drawings_in_which_some_faces_are_detected_are_left_alone(tmp_path, draw_folder):
    """A detector finds wide faces in half of them, which need not be right."""
    measured = []
    records = load_sources((str(draw_folder(tmp_path / "drawn", 40)),))
    assert match_crops(records, AlignmentTemplate(), measured) == {}
    if measured[0].conclusive:
        assert "than the model expects" in make_margin_notices(measured[0], AlignmentTemplate())[0]


def test_images_without_detectable_faces_are_reported():
    stats = LandmarkStats(40, np.empty((3, 5, 2)), np.zeros((5, 2)), "drawings")
    assert "in only 3 of 40 sampled images of drawings" in make_margin_notices(stats, AlignmentTemplate())[0]
    assert make_margin_notices(LandmarkStats(10, np.empty((3, 5, 2)), np.zeros((5, 2))), AlignmentTemplate()) == []


def test_photos_are_distinguished_from_crops(wider, utkface, tmp_path):
    crops = measure_dataset(load_sources((str(wider / "plain"),)))
    assert not crops.scattered
    assert make_crop_notices(crops) == []
    rng = np.random.default_rng(0)
    for path in sorted(utkface.iterdir())[::600]:
        canvas = np.full((500, 700, 3), 120, np.uint8)
        side = int(rng.integers(90, 260))
        left, top = int(rng.integers(0, 700 - side)), int(rng.integers(0, 500 - side))
        canvas[top : top + side, left : left + side] = cv2.resize(cv2.imread(str(path)), (side, side))
        cv2.imwrite(str(tmp_path / path.name), canvas)
    records = load_sources((str(tmp_path),))
    photos = measure_dataset(records)
    assert photos.scattered
    (notice,) = make_crop_notices(photos)
    assert "look like uncropped photos" in notice
    assert "give --detector mtcnn to `agegen train` and `agegen eval`" in notice
    assert match_crops(records, AlignmentTemplate()) == {}


def test_drawings_have_no_crop_box(faces_folder):
    assert match_crops(load_sources((str(faces_folder),)), AlignmentTemplate()) == {}


def test_invalid_crop_boxes_are_reported():
    for content in (None, [1], {"a": {"left": 0}}, {"a": 3}):
        with pytest.raises(CheckpointError, match="invalid crop boxes"):
            read_crop_boxes(content)
