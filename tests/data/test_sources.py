"""Several data sets at once."""

import numpy as np
import pytest

from agegen.batches.sources import weigh_faces
from agegen.data.loading import load_sources
from agegen.data.records import CropBox
from agegen.data.scan import scan_images
from agegen.data.splits import split_scan
from agegen.errors import DataError


@pytest.fixture(scope="module")
def fairface(faces_folder, tmp_path_factory):
    """FairFace in miniature: pictures of other faces, brackets of ages."""
    from agegen.data.demo import draw_records

    folder = tmp_path_factory.mktemp("sets") / "fairface"
    (folder / "train").mkdir(parents=True)
    records = draw_records(100)
    lines = ["file,age,gender,race,service_test"]
    for row in range(60, 100):
        (folder / "train" / f"{row}.png").write_bytes(records.read(row))
        age, female = records.frame["age"][row], records.frame["female"][row]
        decade = int(age // 10 * 10)
        bracket = "more than 70" if age >= 70 else f"{decade}-{decade + 9}"
        lines.append(f"train/{row}.png,{bracket},{'Female' if female else 'Male'},Indian,True")
    (folder / "fairface_label_train.csv").write_text("\n".join(lines))
    return folder


def test_each_face_keeps_its_source(faces_folder, fairface):
    records = load_sources((str(faces_folder), str(fairface)))
    assert records.sources == [faces_folder.name, "fairface"]
    assert len(records) == 100
    labels = records.labels
    assert labels.exact[:60].all()
    assert labels.bracketed[60:].all()
    assert records.group_columns == ["race", "source"]
    assert records.frame["path"].is_unique
    alone = load_sources((str(fairface),))
    assert alone.layout == "FairFace"
    assert [records.read(row) for row in (60, 99)] == [alone.read(0), alone.read(39)]


def test_sources_are_weighed(faces_folder, fairface):
    scan = scan_images(load_sources((str(faces_folder), f"{fairface}::0.25")))
    weights = weigh_faces(scan, np.arange(100), 0.0)
    assert weights.mean() == pytest.approx(1.0)
    assert weights[0] == pytest.approx(4 * weights[60])
    with pytest.raises(DataError, match="weight of a data set"):
        load_sources((f"{fairface}::0",))
    with pytest.raises(DataError, match="named twice"):
        load_sources((str(fairface), f"{fairface}::2"))


def test_each_source_has_the_split_that_it_would_have_alone(faces_folder, fairface):
    both = split_scan(scan_images(load_sources((str(faces_folder), str(fairface)))), seed=3)
    for part, folder in ((both[:60], faces_folder), (both[60:], fairface)):
        alone = split_scan(scan_images(load_sources((str(folder),))), seed=3)
        assert list(part["split"]) == list(alone["split"])


def test_a_picture_in_two_sources_is_on_one_side(faces_folder, tmp_path):
    copy = tmp_path / "again"
    copy.mkdir()
    for path in faces_folder.iterdir():
        (copy / path.name).symlink_to(path)
    split = split_scan(scan_images(load_sources((str(faces_folder), str(copy)))), seed=0)
    assert list(split["split"][:60]) == list(split["split"][60:])


def test_trims_cut_the_part_that_is_wanted():
    image = np.arange(100 * 100 * 3, dtype=np.uint32).reshape(100, 100, 3).astype(np.uint8)
    assert (CropBox(0.1, 0.2, 0.5).cut(image) == image[20:70, 10:60]).all()
    wider = CropBox(-0.1, -0.1, 1.2).cut(image)
    assert wider.shape == (120, 120, 3)
    assert (wider[10:110, 10:110] == image).all()
    assert (wider[0, 0] == image[0, 0]).all()


def test_trims_reach_the_pixels(faces_folder, fairface):
    from dataclasses import replace

    records = load_sources((str(faces_folder), str(fairface)))
    trimmed = replace(records, trims={"fairface": CropBox(0.25, 0.25, 0.5)})
    plain, cut = scan_images(records, 32).pixels, scan_images(trimmed, 32).pixels
    assert (plain[:60] == cut[:60]).all()
    assert all((plain[row] != cut[row]).any() for row in range(60, 100))
