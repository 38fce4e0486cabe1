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
from agegen.faces.matching import make_crop_notices, match_crops, measure_dataset, measure_images, read_crop_boxes


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
