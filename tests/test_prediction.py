import numpy as np
import pytest
import torch

from agegen.errors import AgegenError
from agegen.evaluation import find_interval
from agegen.losses import make_age_distribution
from agegen.prediction import Predictor, find_inputs


def test_inputs_are_files_folders_and_globs(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/1.jpg", "a/b/2.PNG", "a/notes.txt", "3.webp"):
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_inputs([str(tmp_path / "a"), f"{tmp_path}/*.webp"])]
    assert found == ["a/1.jpg", "a/b/2.PNG", "3.webp"]
    # A file that isn't there is a row of its own later on, not the end of all.
    assert [path.name for path in find_inputs([str(tmp_path / "missing.jpg")])] == ["missing.jpg"]
    with pytest.raises(AgegenError, match="no picture in"):
        list(find_inputs([str(tmp_path / "*.gif")]))


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path):
    (tmp_path / "face[1].jpg").touch()
    assert len(list(find_inputs([str(tmp_path / "face[1].jpg")]))) == 1


def test_order_and_bad_files_in_large_batches(trained_run, faces_folder, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no")
    paths = (sorted(faces_folder.iterdir()) + [tmp_path / "bad.png", tmp_path / "lost.png"]) * 2
    faces = list(Predictor.load(trained_run / "best.safetensors").predict_paths(paths))
    assert [face.file for face in faces] == [str(path) for path in paths]
    assert [face.status for face in faces] == (["ok"] * 60 + ["unreadable"] * 2) * 2
    assert faces[61].reason == "no such file"
    assert faces[0] == faces[62] or faces[0].age == pytest.approx(faces[62].age, abs=0.3)


def test_mirrored_faces_get_the_same_estimate(trained_run):
    predictor = Predictor.load(trained_run / "best.safetensors", device="cpu", precision="fp32")
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3)).astype(np.uint8)
    first, second = predictor.predict_crops([("a", image), ("b", np.ascontiguousarray(image[:, ::-1]))])
    assert (first.age, first.p_female) == (second.age, second.p_female)


def test_interval_of_a_known_distribution():
    low, high = find_interval(make_age_distribution(torch.tensor([40.0]), sigma=6.0))
    # The central 90 % of a normal distribution lie within 1.645 sigma.
    assert low.item() == pytest.approx(40 - 1.645 * 6, abs=1)
    assert high.item() == pytest.approx(40 + 1.645 * 6, abs=1)
