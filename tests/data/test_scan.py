"""The scan of all images: unreadable ones, and perceptual hashes."""

import numpy as np
import pytest

from agegen.data.demo import draw_records
from agegen.data.images import decode_image
from agegen.data.loading import load_records
from agegen.data.scan import hash_image, scan_images
from agegen.errors import DataError


def test_unreadable_images_are_excluded_unless_all_are(faces_folder, tmp_path):
    (tmp_path / "30_0_0_1.jpg").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"no image of .* can be read"):
        scan_images(load_records(str(tmp_path)))
    good = next(faces_folder.iterdir())
    (tmp_path / good.name).write_bytes(good.read_bytes())
    scan = scan_images(load_records(str(tmp_path)))
    assert len(scan.records) == len(scan.sha256) == 1
    assert [item.path for item in scan.records.excluded] == ["30_0_0_1.jpg"]


def test_hashes_survive_changes_of_brightness_and_distinguish_faces():
    records = draw_records(2)
    first, second = (decode_image(records.read(index)) for index in range(2))
    brighter = (first * 0.8 + 20).astype(np.uint8)
    assert (hash_image(first) != hash_image(brighter)).sum() < 20
    assert (hash_image(first) != hash_image(second)).sum() > 60


def test_a_table_of_many_missing_files_ends_at_once(tmp_path):
    rows = "".join(f"faces/{row}.jpg,30,f\n" for row in range(20_000))
    (tmp_path / "t.csv").write_text("path,age,gender\n" + rows)
    records = load_records(str(tmp_path / "t.csv"))
    called = []
    with pytest.raises(DataError, match=r"none of 1,000 sampled files of 20,000 exists; the first: faces/0\.jpg"):
        scan_images(records, on_progress=lambda *done: called.append(done))
    assert called == []


def test_missing_files_are_excluded_while_others_exist(tmp_path, faces_folder):
    path = next(faces_folder.iterdir())
    rows = [f"{place}.jpg,30,f" for place in range(700)]
    (tmp_path / "t.csv").write_text("\n".join(["path,age,gender", *rows, f"{path},30,f"]))
    scan = scan_images(load_records(str(tmp_path / "t.csv")))
    assert len(scan.sha256) == 1
    assert len(scan.records.excluded) == 700
