"""``agegen data crop``: aligned crops of labelled photos."""

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from agegen.data.loading import load_sources
from agegen.datatools.config import CropConfig
from agegen.datatools.crop import crop_data
from agegen.errors import AgegenError, DataError


@pytest.fixture
def photos(portrait, tmp_path):
    """Two photos with a face and one without, in folders; exact ages and a bracket."""
    folder = tmp_path / "photos"
    (folder / "in").mkdir(parents=True)
    shutil.copy(portrait, folder / "in" / "first.jpg")
    image = Image.open(portrait)
    wide = Image.new("RGB", (1200, 800), "grey")
    wide.paste(image.resize((256, 300)), (700, 300))
    wide.save(folder / "second.png")
    Image.new("RGB", (400, 300), "white").save(folder / "empty.png")
    (folder / "photos.csv").write_text(
        "file,age,sex,camera\nin/first.jpg,77,w,a\nsecond.png,70-79,,b\nempty.png,30,m,c\ngone.png,20,f,d\n"
    )
    return folder / "photos.csv"


def test_crops_and_their_manifest(photos, tmp_path):
    result = crop_data(CropConfig((str(photos),), tmp_path / "crops"))
    assert result.crops == 2
    assert {item.path: item.reason for item in result.excluded} == {
        "empty.png": "no face found (mtcnn)",
        "gone.png": "no such file",
    }
    table = pd.read_csv(result.manifest, keep_default_na=False)
    assert table.to_dict("list") == {
        "path": ["in/first.jpg.jpg", "second.png.jpg"],
        "age": ["77", "70-79"],
        "gender": ["female", ""],
        "camera": ["a", "b"],
    }
    first, second = (np.asarray(Image.open(tmp_path / "crops" / name)).astype(int) for name in table["path"])
    assert first.shape == second.shape == (200, 200, 3)
    # The same face in the same place, independent of its size and position in the photo.
    assert np.abs(first - second)[40:160, 40:160].mean() < 30
    again = load_sources((str(result.manifest),))
    assert again.labels.low.tolist() == [77, 70]


def test_photos_that_cannot_be_cropped_are_errors_of_one_line(photos, tmp_path, faces_folder, agegen):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "x").touch()
    with pytest.raises(AgegenError, match="is not an empty folder"):
        crop_data(CropConfig((str(photos),), tmp_path / "used"))
    photos.write_text("path,age\nempty.png,3\n")
    with pytest.raises(DataError, match="no face found in any image"):
        crop_data(CropConfig((str(photos),), tmp_path / "none"))
    done = agegen("data", "crop", photos, tmp_path / "other", "--detector", "nose")
    assert done.exit_code == 2
    assert "'nose' is not one of" in done.stderr


def test_command(photos, tmp_path, agegen):
    done = agegen("data", "crop", photos, tmp_path / "crops")
    assert done.exit_code == 0
    assert "2 crops;" in done.stdout
    assert "2 rows excluded, the first: empty.png (no face found (mtcnn))" in done.stderr
