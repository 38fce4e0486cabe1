"""The subject of an evaluation: which faces of which split, and which of them the training has seen."""

from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest

from agegen.data.labels import compute_baseline
from agegen.data.loading import load_sources
from agegen.data.scan import scan_images
from agegen.data.splits import split_scan
from agegen.errors import DataError
from agegen.evaluate.subject import TrainingSplit, open_subject, read_training_split
from agegen.model.checkpoint import load_checkpoint, read_used_faces, save_checkpoint
from agegen.runs import RunFolder
from agegen.train.setup import collect_used_faces, count_seen


@pytest.fixture(scope="module")
def own(trained_run):
    """The demo run on its own data."""
    return open_subject(run=trained_run)


def test_a_run_on_its_own_data_knows_every_split(own, trained_run):
    assert own.own_data
    assert (own.path, own.source) == (trained_run, "demo")
    assert {name: int((own.splits == name).sum()) for name in ("train", "val", "test")} == {
        "train": 384,
        "val": 48,
        "test": 48,
    }
    assert (own.seen == (own.splits == "train")).all()
    chosen, left_out = own.select_faces("test")
    assert (chosen.sum(), left_out) == (48, 0)
    assert own.select_faces("all")[0].all()
    assert own.describe_overlap() == []


def test_a_checkpoint_without_its_run_recovers_the_split_of_its_own_data(own, trained_run, tmp_path):
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((trained_run / "best.safetensors").read_bytes())
    subject = open_subject(["demo"], run=alone)
    assert subject.run is None
    assert (subject.splits == own.splits).all()
    assert (subject.seen == own.seen).all()
    assert subject.describe_overlap() == []


@pytest.fixture
def remembering(trained_run, utkface, tmp_path):
    """A checkpoint that remembers 40 real faces as its training set and 10 as its validation set; 20 more are new."""
    folder = tmp_path / "real"
    folder.mkdir()
    for path in sorted(utkface.iterdir())[::280][:70]:
        (folder / path.name).symlink_to(path)
    scan = scan_images(load_sources((str(folder),)))
    split = pd.DataFrame({"split": ["train"] * 40 + ["val"] * 10 + ["test"] * 20})
    info, model = load_checkpoint(trained_run / "best.safetensors")
    checkpoint = tmp_path / "remembering.safetensors"
    save_checkpoint(checkpoint, model, info, collect_used_faces(split, scan.hashes, None))
    return checkpoint, scan


@pytest.mark.parametrize("quality", [95, 50, 20])
def test_re_encoded_and_resized_copies_are_recognized_among_other_faces(remembering, tmp_path, quality):
    checkpoint, scan = remembering
    (tmp_path / "copies").mkdir()
    for row in range(10, 70):
        image = cv2.cvtColor(scan.records.decode(row), cv2.COLOR_RGB2BGR)
        small = cv2.resize(image, (112, 112), interpolation=cv2.INTER_AREA)
        path = tmp_path / "copies" / f"30_1_0_2017{row:010d}.jpg"
        cv2.imwrite(str(path), small, [cv2.IMWRITE_JPEG_QUALITY, quality])
    subject = open_subject([str(tmp_path / "copies")], run=checkpoint)
    assert subject.seen.tolist() == [True] * 40 + [False] * 20
    chosen, left_out = subject.select_faces("test")
    assert (chosen == ~subject.seen).all()
    assert left_out == 40
    assert subject.select_faces("all")[0].all()
    assert subject.describe_overlap() == []


def test_nothing_is_evaluated_if_the_training_used_every_face(remembering, tmp_path):
    checkpoint, scan = remembering
    (tmp_path / "old").mkdir()
    for row in range(50):
        image = cv2.cvtColor(scan.records.decode(row), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(tmp_path / "old" / f"30_1_0_2017{row:010d}.png"), image)
    subject = open_subject([str(tmp_path / "old")], run=checkpoint)
    with pytest.raises(DataError, match="is new to the model: its training used all"):
        subject.select_faces("test")


def test_fine_tuning_remembers_the_faces_of_the_first_training(remembering):
    checkpoint, scan = remembering
    split = pd.DataFrame({"split": ["test"] * 50 + ["train"] * 10 + ["val"] * 10})
    used = collect_used_faces(split, scan.hashes, read_used_faces(checkpoint))
    assert (len(used.train), len(used.val)) == (50, 20)
    assert count_seen(read_used_faces(checkpoint), split, scan.hashes) == {"val": 0, "test": 40}
    assert count_seen(None, split, scan.hashes) == {}


def test_a_checkpoint_that_remembers_nothing_says_so(trained_run, faces_folder, tmp_path):
    info, model = load_checkpoint(trained_run / "best.safetensors")
    alone = tmp_path / "alone.safetensors"
    save_checkpoint(alone, model, info)
    subject = open_subject([str(faces_folder)], run=alone)
    assert not subject.seen.any()
    assert "is unknown" in subject.describe_overlap()[0]
    with pytest.raises(DataError, match=r"the split 'test' of the faces of .* is unknown"):
        subject.select_faces("test")
    assert subject.select_faces("all")[0].all()


def test_the_data_has_its_own_split_if_the_models_does_not_cover_it(trained_run, faces_folder, tmp_path):
    names = [str(path) for path in sorted(faces_folder.iterdir())[:8]]
    for name in names:
        cv2.imwrite(str(tmp_path / f"{names.index(name)}.png"), 255 - cv2.imread(name))
    rows = [(f"{row}.png", 30, 1, "test" if row < 3 else "train") for row in range(8)]
    pd.DataFrame(rows, columns=["path", "age", "gender", "split"]).to_csv(tmp_path / "m.csv", index=False)
    subject = open_subject([str(tmp_path / "m.csv")], run=trained_run)
    assert not subject.own_data
    assert subject.select_faces("test")[0].tolist() == [True] * 3 + [False] * 5
    with pytest.raises(DataError, match="is in the split 'val'"):
        subject.select_faces("val")


def test_a_scan_that_exists_is_not_made_again(trained_run, own, monkeypatch):
    scan = scan_images(load_sources(("demo",)))
    monkeypatch.setattr("agegen.evaluate.subject.scan_for", lambda *_: pytest.fail("scanned again"))
    subject = open_subject(["demo"], run=trained_run, scan=scan)
    assert subject.scan.sha256 == scan.sha256
    assert (subject.seen == own.seen).all()


def test_estimates_and_labels_are_those_of_the_chosen_faces(own):
    from agegen.machine import choose_compute

    chosen, _ = own.select_faces("test")
    estimates, labels = own.estimate(chosen, choose_compute("cpu"))
    assert estimates.age.shape == estimates.p_female.shape == (48,)
    assert estimates.distributions is None
    assert (labels.low == own.scan.records.labels.low[chosen]).all()


def test_a_checkpoint_without_a_baseline_has_that_of_the_faces(trained_run, tmp_path, own):
    info, model = load_checkpoint(trained_run / "best.safetensors")
    bare = tmp_path / "bare.safetensors"
    save_checkpoint(bare, model, replace(info, training={}))
    subject = open_subject(["demo"], run=bare)
    assert subject.baseline == compute_baseline(subject.scan.records.frame) != own.baseline


def test_a_training_has_seen_its_faces_and_their_near_duplicates():
    scan = scan_images(load_sources(("demo",)))
    table = split_scan(scan, seed=3)
    split = TrainingSplit(table)
    trained = (table["split"] == "train").to_numpy()
    assert (split.find_splits(scan.sha256) == table["split"]).all()
    assert (split.find_seen(scan.sha256, scan.hashes) >= trained).all()
    # Other files of the same content are recognised by their hashes alone.
    others = [f"{row:064d}" for row in range(len(table))]
    assert split.find_seen(others, scan.hashes)[trained].all()
    unrelated = np.random.default_rng(0).random(scan.hashes.shape) < 0.5
    assert not split.find_seen(others, unrelated).any()
    assert (split.find_hashes(scan.sha256[:5]) == scan.hashes[:5]).all()


def test_an_unknown_split_has_seen_nothing_that_is_known():
    split = TrainingSplit()
    assert split.find_splits(["a", "b"]).tolist() == ["", ""]
    assert split.find_seen(["a", "b"], np.zeros((2, 256), dtype=bool)).tolist() == [False, False]


def test_a_run_without_its_split_is_an_error(trained_run, tmp_path):
    with pytest.raises(DataError):
        read_training_split(RunFolder(tmp_path))
