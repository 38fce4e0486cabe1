"""Data sets whose crops differ are brought to one."""

import cv2
import numpy as np
import pytest

from agegen.data.loading import load_sources
from agegen.errors import CheckpointError
from agegen.faces.alignment import AlignmentTemplate
from agegen.faces.matching import match_crops, read_trims, survey_crops


@pytest.fixture(scope="module")
def wider(utkface, tmp_path_factory):
    """UTKFace twice: as it is, and with a tenth of the side added around each face."""
    root = tmp_path_factory.mktemp("crops")
    for name in ("plain", "wider"):
        (root / name).mkdir()
    for path in sorted(utkface.iterdir())[::450]:
        (root / "plain" / path.name).symlink_to(path)
        picture = cv2.imread(str(path))
        picture = cv2.copyMakeBorder(picture, 20, 20, 20, 20, cv2.BORDER_REFLECT)
        cv2.imwrite(str(root / "wider" / path.name), picture)
    return root


def test_the_wider_set_is_trimmed_to_the_first(wider):
    trims = match_crops(load_sources((str(wider / "plain"), str(wider / "wider"))))
    assert list(trims) == ["wider"]
    trim = trims["wider"]
    assert trim.side == pytest.approx(200 / 240, abs=0.02)
    assert (trim.left, trim.top) == pytest.approx((20 / 240, 20 / 240), abs=0.015)
    assert read_trims({"wider": vars(trim)}) == trims


def test_one_set_is_left_as_it_is_unless_a_contract_is_given(wider):
    records = load_sources((str(wider / "wider"),))
    assert match_crops(records) == {}
    trim = match_crops(records, AlignmentTemplate())[records.source]
    assert trim.side == pytest.approx(200 / 240, abs=0.03)
    assert match_crops(load_sources((str(wider / "plain"),)), AlignmentTemplate()) == {}


def test_photographs_are_told_from_crops(wider, utkface, tmp_path):
    assert not survey_crops(load_sources((str(wider / "plain"),))).scattered
    rng = np.random.default_rng(0)
    for path in sorted(utkface.iterdir())[::600]:
        canvas = np.full((500, 700, 3), 120, np.uint8)
        side = int(rng.integers(90, 260))
        left, top = int(rng.integers(0, 700 - side)), int(rng.integers(0, 500 - side))
        canvas[top : top + side, left : left + side] = cv2.resize(cv2.imread(str(path)), (side, side))
        cv2.imwrite(str(tmp_path / path.name), canvas)
    records = load_sources((str(tmp_path),))
    assert survey_crops(records).scattered
    assert match_crops(records, AlignmentTemplate()) == {}


def test_drawings_have_no_crop_to_match(faces_folder):
    assert match_crops(load_sources((str(faces_folder),)), AlignmentTemplate()) == {}


def test_damaged_trims_are_one_line():
    for content in (None, [1], {"a": {"left": 0}}, {"a": 3}):
        with pytest.raises(CheckpointError, match="can't be read"):
            read_trims(content)
