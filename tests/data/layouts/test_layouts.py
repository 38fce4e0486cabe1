"""Every dataset layout in miniature: recognized and read correctly."""

import numpy as np
import pytest
from scipy.io import savemat

from agegen.data.layouts import list_layouts
from agegen.data.layouts.file_names import parse_utkface_name
from agegen.data.loading import load_records
from agegen.errors import DataError, PluginError
from agegen.options import ReadOptions

NAN = float("nan")


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def check(records, layout, paths, ages, female):
    assert records.layout == layout
    assert list(records.frame["path"]) == paths
    low, high = ([age[end] if isinstance(age, tuple) else age for age in ages] for end in (0, 1))
    assert records.labels.low.tolist() == pytest.approx(low, nan_ok=True)
    assert records.labels.high.tolist() == pytest.approx(high, nan_ok=True)
    assert records.labels.female.tolist() == pytest.approx(female, nan_ok=True)
    # The store reads the file of the row.
    assert records.read(0).decode().endswith(paths[0].rsplit("/", 1)[-1])


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("26_0_2_20170116174525125.jpg.chip.jpg", (26, False, "Asian")),
        ("1_1_0_20161219140623097.jpg", (1, True, "White")),
        ("39_1_20170116174525125.jpg.chip.jpg", "the name is not age_gender_race_datetime"),
        ("IMG_2031.jpg", "the name is not age_gender_race_datetime"),
        ("117_0_0_20170112213500903.jpg", "age 117 is outside 0–116"),
    ],
)
def test_utkface_names(name, parsed):
    assert parse_utkface_name(name) == parsed


def test_utkface(tmp_path):
    touch(tmp_path, "25_1_2_20170116174525125.jpg.chip.jpg", "sub/1_0_4_20170116174525126.jpg", "grandma.jpg")
    records = load_records(str(tmp_path))
    names = ["25_1_2_20170116174525125.jpg.chip.jpg", "sub/1_0_4_20170116174525126.jpg"]
    check(records, "UTKFace", names, [25, 1], [1, 0])
    assert list(records.frame["race"]) == ["Asian", "Other"]


def test_fairface(tmp_path):
    touch(tmp_path, "train/1.jpg", "val/1.jpg")
    header = "file,age,gender,race,service_test\n"
    (tmp_path / "fairface_label_train.csv").write_text(header + "train/1.jpg,more than 70,Female,Black,True\n")
    (tmp_path / "fairface_label_val.csv").write_text(header + "val/1.jpg,0-2,Male,White,False\n")
    records = load_records(str(tmp_path))
    check(records, "FairFace", ["train/1.jpg", "val/1.jpg"], [(70, 116), (0, 2)], [1, 0])
    assert records.group_columns == ["race"]
    assert "CC BY 4.0" in records.terms


@pytest.mark.parametrize(
    ("folder", "prefix"), [("faces", "coarse_tilt_aligned_face"), ("aligned", "landmark_aligned_face")]
)
def test_adience(tmp_path, folder, prefix):
    header = "user_id\toriginal_image\tface_id\tage\tgender\tx\ty\n"
    (tmp_path / "fold_0_data.txt").write_text(header + "7@N1\ta.jpg\t1\t(25, 32)\tf\t0\t0\n")
    (tmp_path / "fold_1_data.txt").write_text(header + "8@N2\tb.jpg\t2\t35\tu\t0\t0\n8@N2\tc.jpg\t3\tNone\tm\t0\t0\n")
    (tmp_path / "fold_frontal_0_data.txt").write_text(header)
    names = [f"{folder}/7@N1/{prefix}.1.a.jpg", f"{folder}/8@N2/{prefix}.2.b.jpg", f"{folder}/8@N2/{prefix}.3.c.jpg"]
    touch(tmp_path, *names)
    records = load_records(str(tmp_path))
    check(records, "Adience", names, [(25, 32), 35, NAN], [1, NAN, 0])
    assert records.identity_columns == ["subject"]


def test_all_age_faces(tmp_path):
    touch(tmp_path, "07380A25.jpg", "07381A02.jpg")
    check(load_records(str(tmp_path)), "All-Age-Faces", ["07380A25.jpg", "07381A02.jpg"], [25, 2], [1, 0])


def test_agedb(tmp_path):
    touch(tmp_path, "0_MariaCallas_35_f.jpg", "12_Jean-Paul_Sartre_60_m.jpg")
    records = load_records(str(tmp_path))
    check(records, "AgeDB", ["0_MariaCallas_35_f.jpg", "12_Jean-Paul_Sartre_60_m.jpg"], [35, 60], [1, 0])
    assert list(records.frame["identity"]) == ["MariaCallas", "Jean-Paul_Sartre"]
    assert records.group_columns == []


def test_fgnet(tmp_path):
    touch(tmp_path, "001A02.JPG", "001A43a.JPG", "082A18.JPG")
    records = load_records(str(tmp_path))
    check(records, "FG-NET", ["001A02.JPG", "001A43a.JPG", "082A18.JPG"], [2, 43, 18], [NAN] * 3)
    assert list(records.frame["identity"]) == ["001", "001", "082"]


def test_afad(tmp_path):
    touch(tmp_path, "18/111/1-0.jpg", "18/112/2-0.jpg", "40/111/3-0.jpg")
    names = ["18/111/1-0.jpg", "18/112/2-0.jpg", "40/111/3-0.jpg"]
    check(load_records(str(tmp_path)), "AFAD", names, [18, 18, 40], [0, 1, 0])


def test_appa_real(tmp_path):
    header = "file_name,num_ratings,apparent_age_avg,apparent_age_std,real_age\n"
    (tmp_path / "gt_avg_train.csv").write_text(header + "000000.jpg,36,5.05,0.7,4\n")
    (tmp_path / "gt_avg_valid.csv").write_text(header + "004113.jpg,38,24.5,3.9,23\n")
    (tmp_path / "gt_avg_test.csv").write_text(header + "005613.jpg,39,24.5,4.2,25\n")
    names = ["train/000000.jpg_face.jpg", "valid/004113.jpg", "test/005613.jpg"]
    touch(tmp_path, *names)
    records = load_records(str(tmp_path))
    check(records, "APPA-REAL", names, [4, 23, 25], [NAN] * 3)
    assert list(records.frame["split"]) == ["train", "val", "test"]
    seen = load_records(str(tmp_path), ReadOptions(age_column="apparent_age_avg"))
    assert list(seen.frame["age"]) == [5.05, 24.5, 24.5]


def write_mat(path, rows):
    """Write a file like the dataset's authors did in Matlab: one struct of fields of size 1×N."""
    names = ("dob", "photo_taken", "gender", "face_score", "second_face_score")
    texts = {name: np.empty((1, len(rows)), dtype=object) for name in ("full_path", "name")}
    for place, row in enumerate(rows):
        for name, cells in texts.items():
            cells[0, place] = row[name]
    numbers = {name: np.array([[row[name] for row in rows]], dtype=float) for name in names}
    savemat(path, {path.stem: {**numbers, **texts}})


def test_imdb_wiki(tmp_path):
    # Matlab's day 723671 is the 1st of May 1981, and 723775 the 13th of August 1981.
    good = {"photo_taken": 2009, "face_score": 4.3, "second_face_score": NAN}
    rows = [
        {**good, "dob": 723671, "gender": 1, "full_path": "17/a.jpg", "name": "A B"},
        {**good, "dob": 723775, "gender": 0, "full_path": "18/b.jpg", "name": "C D"},
        {**good, "dob": 723671, "gender": 1, "full_path": "17/c.jpg", "name": "A B", "face_score": -np.inf},
        {**good, "dob": 723671, "gender": NAN, "full_path": "17/d.jpg", "name": "A B", "second_face_score": 2.0},
    ]
    write_mat(tmp_path / "wiki.mat", rows)
    touch(tmp_path, *(row["full_path"] for row in rows))
    records = load_records(str(tmp_path))
    check(records, "IMDB-WIKI", ["17/a.jpg", "18/b.jpg"], [28, 27], [0, 1])
    assert {item.path: item.reason for item in records.excluded} == {
        "17/c.jpg": "no face",
        "17/d.jpg": "more than one face",
    }
    assert list(records.frame["identity"]) == ["A B", "C D"]
    (tmp_path / "wiki.mat").write_bytes(b"not Matlab")
    with pytest.raises(DataError, match="is not an IMDB-WIKI file"):
        load_records(str(tmp_path))


def test_lagenda(tmp_path):
    (tmp_path / "lagenda_annotation.csv").write_text(
        "img_name,age,gender,face_x0,face_y0,face_x1,face_y1,person_x0,person_y0,person_x1,person_y1\n"
        "a.jpg,31,M,1,1,5,5,0,0,9,9\nb.jpg,-1,F,1,1,5,5,0,0,9,9\nc.jpg,5,F,1,1,5,5,0,0,9,9\nc.jpg,40,M,6,6,9,9,0,0,9,9\n"
    )
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    faces = ["a.jpg", "b.jpg", "c.jpg#1,1,5,5", "c.jpg#6,6,9,9"]
    check(load_records(str(tmp_path)), "LAGENDA", faces, [31, NAN, 5, 40], [0, 1, 1, 0])


def test_lagenda_without_boxes(tmp_path):
    (tmp_path / "lagenda_annotation.csv").write_text("img_name,age,gender\na.jpg,31,M\nc.jpg,5,F\nc.jpg,5,F\n")
    touch(tmp_path, "a.jpg", "c.jpg")
    check(load_records(str(tmp_path)), "LAGENDA", ["a.jpg"], [31], [0])


def test_imdb_clean(tmp_path):
    header = "filename,age,gender,x_min,y_min,x_max,y_max\n"
    (tmp_path / "imdb_train_new_1024.csv").write_text(header + "07/a.jpg,38.0,M,1,1,5,5\n")
    (tmp_path / "imdb_test_new_1024.csv").write_text(header + "08/b.jpg,22.0,F,1,1,5,5\n")
    touch(tmp_path, "07/a.jpg", "08/b.jpg")
    records = load_records(str(tmp_path))
    check(records, "IMDB-clean", ["07/a.jpg", "08/b.jpg"], [38, 22], [0, 1])
    assert list(records.frame["split"]) == ["train", "test"]


@pytest.mark.parametrize("form", ["txt", "csv"])
def test_celeba(tmp_path, form):
    touch(tmp_path, "img_align_celeba/000001.jpg", "img_align_celeba/000002.jpg")
    if form == "txt":
        text = "2\n5_o_Clock_Shadow Male Young \n000001.jpg -1  1 -1\n000002.jpg  1 -1  1\n"
    else:
        text = "image_id,5_o_Clock_Shadow,Male,Young\n000001.jpg,-1,1,-1\n000002.jpg,1,-1,1\n"
    (tmp_path / f"list_attr_celeba.{form}").write_text(text)
    (tmp_path / "identity_CelebA.txt").write_text("000001.jpg 2880\n000002.jpg 2937\n")
    header, comma = ("", " ") if form == "txt" else ("image_id,partition\n", ",")
    (tmp_path / f"list_eval_partition.{form}").write_text(f"{header}000001.jpg{comma}0\n000002.jpg{comma}2\n")
    records = load_records(str(tmp_path))
    assert list(records.frame["split"]) == ["train", "test"]
    names = ["img_align_celeba/000001.jpg", "img_align_celeba/000002.jpg"]
    check(records, "CelebA", names, [NAN, NAN], [0, 1])
    assert list(records.frame["identity"]) == ["2880", "2937"]


def test_folders_by_label(tmp_path):
    touch(tmp_path, "20-29/male/a.jpg", "20-29/female/b.jpg", "60+/female/c.jpg", "stray.jpg")
    records = load_records(str(tmp_path))
    names = ["20-29/female/b.jpg", "20-29/male/a.jpg", "60+/female/c.jpg"]
    check(records, "folders by label", names, [(20, 29), (20, 29), (60, 116)], [1, 0, 1])
    assert records.excluded[0].reason == "neither age nor gender is known"


def test_a_folder_without_a_known_layout_lists_the_layouts(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"none of the layouts that agegen knows \(FairFace, Adience, .*UTKFace, .*\)"):
        load_records(str(tmp_path))


def test_help_lists_every_layout(agegen):
    from agegen.cli.app import LAYOUTS

    names = [layout.NAME for layout in list_layouts()]
    assert tuple(names) == LAYOUTS
    assert "folders by label" in " ".join(agegen("data", "--help").stdout.replace("│", "").split())
    assert len(names) == len(set(names)) == 14


class Fake:
    """A stand-in for an entry point of another package."""

    def __init__(self, loaded):
        self.name, self.dist, self._loaded = "mine", None, loaded

    def load(self):
        if isinstance(self._loaded, Exception):
            raise self._loaded
        return self._loaded


def test_layouts_of_other_packages(tmp_path, monkeypatch, faces_folder):
    class Mine:
        NAME = "mine"

        @staticmethod
        def read(path, options):
            return load_records(str(faces_folder)) if path == tmp_path else None

    monkeypatch.setattr("agegen.plugins.entry_points", lambda group: [Fake(Mine)])
    assert len(load_records(str(tmp_path))) == 60
    monkeypatch.setattr("agegen.plugins.entry_points", lambda group: [Fake(RuntimeError("boom"))])
    with pytest.raises(PluginError, match=r"layout 'mine' of .* cannot be loaded: RuntimeError: boom"):
        load_records(str(tmp_path))


def test_imdb_wiki_without_its_table(tmp_path):
    names = [
        "02/nm0000002_rm1_1960-7-1_2005.jpg",
        "08/nm0000008_rm3_1931-12-31_1990.jpg",
        "17/10000217_1981-05-05_2009.jpg",
        "18/NM0000018_RM4_1960-7-1_2005.JPG",
        "19/nm0000019_rm5_1960-7-1_2005_face0.png",
        "64/nm0000064_rm2_2014-3-4_2005.jpg",
    ]
    touch(tmp_path, *names, "99/portrait.jpg")
    records = load_records(str(tmp_path))
    check(records, "IMDB-WIKI", names[:5], [45, 58, 28, 45, 45], [NAN] * 5)
    assert list(records.frame["identity"]) == ["nm0000002", "nm0000008", "10000217", "NM0000018", "nm0000019"]
    assert records.notices[0].startswith("imdb.mat or wiki.mat is missing")
    assert [item.path for item in records.excluded] == [names[5], "99/portrait.jpg"]


def test_folders_with_numbers_are_ages_with_a_notice(tmp_path):
    touch(tmp_path, "001/a.jpg", "002/b.jpg", "002/c.jpg", "2019/x.txt")
    records = load_records(str(tmp_path))
    assert list(records.frame["age"]) == [1, 2, 2]
    assert "the folders 001, 002 are read as ages" in records.notices[0]
    assert load_named(tmp_path / "words", "20-29/a.jpg", "female/b.jpg").notices == ()


def load_named(root, *names):
    touch(root, *names)
    return load_records(str(root))


def test_folders_with_numbers_above_any_age_are_no_ages(tmp_path):
    records = load_named(tmp_path / "a", "female/001/a.jpg", "male/002/b.jpg", "male/300/c.jpg")
    assert not records.labels.exact.any()
    assert list(load_named(tmp_path / "b", "2019/20/a.jpg", "2020/30/b.jpg").frame["age"]) == [20, 30]
    with pytest.raises(DataError, match="none of the layouts"):
        load_named(tmp_path / "c", "001/a.jpg", "300/b.jpg")


TABLE = "file_name,age,gender\n"


def write_tables(root, tables):
    for name, rows in tables.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(TABLE + "".join(f"{row}\n" for row in rows))


def test_a_table_in_each_folder_of_a_split(tmp_path):
    touch(tmp_path, "train/a.jpg", "train/b.jpg", "test/a.jpg")
    write_tables(tmp_path, {"train/metadata.csv": ["a.jpg,20,f", "b.jpg,25,m"], "test/metadata.csv": ["a.jpg,30,m"]})
    records = load_records(str(tmp_path))
    check(records, "", ["test/a.jpg", "train/a.jpg", "train/b.jpg"], [30, 20, 25], [0, 1, 0])
    assert list(records.frame["split"]) == ["test", "train", "train"]
    assert records.notices[0] == "labels are read from test/metadata.csv, train/metadata.csv"


def test_a_table_one_folder_down(tmp_path):
    touch(tmp_path, "faces/a.jpg", "README.md")
    write_tables(tmp_path, {"faces/labels.csv": ["a.jpg,20,f"]})
    check(load_records(str(tmp_path)), "", ["faces/a.jpg"], [20], [1])


@pytest.mark.parametrize("folders", [("images", "images"), ("train", "test"), ("images/train", "images/test")])
def test_a_table_for_each_split_beside_the_images(tmp_path, folders):
    touch(tmp_path, f"{folders[0]}/a.jpg", f"{folders[0]}/b.jpg", f"{folders[1]}/c.jpg")
    write_tables(tmp_path, {"train.csv": ["a.jpg,20,f", "b.jpg,25,m"], "test_labels.csv": ["c.jpg,30,m"]})
    (tmp_path / "sample_submission.csv").write_text("id,guess\n1,2\n")
    records = load_records(str(tmp_path))
    names = [f"{folders[1]}/c.jpg", f"{folders[0]}/a.jpg", f"{folders[0]}/b.jpg"]
    check(records, "", names, [30, 20, 25], [0, 1, 0])
    assert list(records.frame["split"]) == ["test", "train", "train"]
    assert "sample_submission.csv has no labels and is not used" in records.notices


def test_one_table_of_any_name_beside_the_images(tmp_path):
    touch(tmp_path, "img/a.jpg", "masks/b.png")
    write_tables(tmp_path, {"faces.csv": ["a.jpg,20,f"]})
    check(load_records(str(tmp_path)), "", ["img/a.jpg"], [20], [1])
    records = load_records(str(tmp_path / "faces.csv"))
    assert list(records.frame["path"]) == ["img/a.jpg"]
    assert "the images are in img/" in records.notices


def test_the_estimates_of_agegen_are_no_labels(tmp_path):
    touch(tmp_path, "a.jpg")
    (tmp_path / "faces.csv").write_text("file,age,gender,p_female\na.jpg,20,female,0.99\n")
    with pytest.raises(DataError, match=r"It contains 1 \.jpg in \./, 1 \.csv in \./"):
        load_records(str(tmp_path))


def test_an_unknown_folder_is_described(tmp_path):
    touch(tmp_path / "a", "shards/faces-000.tar", "shards/faces-001.tar")
    with pytest.raises(
        DataError, match=r"It contains 2 \.tar in shards/.*WebDataset.*load_dataset.*agegen help datasets"
    ):
        load_records(str(tmp_path / "a"))
    with pytest.raises(DataError, match=r"cannot read .*WebDataset"):
        load_records(str(tmp_path / "a" / "shards" / "faces-000.tar"))
    write_tables(tmp_path / "b", {"one.csv": ["a.jpg,20,f"], "two.csv": ["b.jpg,20,f"]})
    with pytest.raises(
        DataError, match=r"2 \.csv in \./. If several tables or folders are meant, give each with --data"
    ):
        load_records(str(tmp_path / "b"))
