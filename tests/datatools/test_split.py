"""``agegen split`` and ``--protocol``: the split that a training would use, as a file."""

import json

import numpy as np
import pandas as pd
import pytest

from agegen.data.demo import draw_records
from agegen.data.scan import scan_images
from agegen.data.splits import PROTOCOLS, apply_protocol, find_protocol, read_split, split_scan
from agegen.errors import AgegenError, DataError


def test_the_split_is_that_of_a_training(agegen, trained_run, tmp_path):
    result = agegen("split", "demo", "-o", tmp_path / "split.csv")
    assert result.exit_code == 0, result.stderr
    written, used = read_split(tmp_path / "split.csv"), read_split(trained_run / "split.csv")
    assert written.equals(used)
    record = json.loads((trained_run / "run.json").read_text())
    assert record["data"]["fingerprint"] in result.stdout
    assert "384 train, 48 val, 48 test" in result.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("quick_training")
def test_a_training_uses_the_file(agegen, tmp_path):
    agegen("split", "demo", "--seed", 7, "--out", tmp_path / "split.csv")
    command = ("train", "--model", "scratch", "--data", "demo", "--epochs", 1, "--workers", 0)
    result = agegen(*command, "--split-file", tmp_path / "split.csv", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert read_split(tmp_path / "run" / "split.csv").equals(read_split(tmp_path / "split.csv"))


@pytest.mark.parametrize(("name", "low", "high"), [("utkface-21-60", 21, 60), ("utkface-full", 0, 116)])
def test_protocols_have_their_ages_and_fractions(name, low, high):
    scan = scan_images(draw_records(400))
    protocol = find_protocol(name)
    kept = apply_protocol(scan, protocol)
    ages = kept.records.frame["age"]
    assert (ages.between(low, high)).all()
    inside = scan.records.frame["age"].between(low, high).sum()
    assert len(ages) == inside
    assert len(kept.records.excluded) == 400 - inside
    split = split_scan(kept, 0, protocol.shares)
    shares = split["split"].value_counts(normalize=True)
    assert shares["test"] == pytest.approx(0.2, abs=0.03)
    assert shares["val"] == pytest.approx(0.08, abs=0.03)
    assert (split.groupby("group")["split"].nunique() == 1).all()
    assert f"{inside} of 400 faces (ages {low}–{high})" in kept.records.notices[-1]
    assert "the published split is not public" in kept.records.notices[-1]


def test_protocols_ignore_the_datas_own_split():
    scan = scan_images(draw_records(60))
    scan.records.frame["split"] = "train"
    split = split_scan(apply_protocol(scan, PROTOCOLS["utkface-full"]), 0, PROTOCOLS["utkface-full"].shares)
    assert set(split["split"]) == {"train", "val", "test"}


@pytest.mark.usefixtures("quick_training")
def test_a_training_records_its_protocol(agegen, tmp_path):
    command = ("train", "--model", "scratch", "--data", "demo", "--epochs", 1, "--workers", 0)
    result = agegen(*command, "--protocol", "utkface-21-60", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert "the published split is not public" in " ".join(result.stderr.split())
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"]["split_origin"] == "protocol utkface-21-60"
    assert "--protocol utkface-21-60" in record["command"]
    assert pd.read_parquet(tmp_path / "run" / "predictions.parquet")["age"].between(21, 60).all()
    assert "follow protocol utkface-21-60" in (tmp_path / "run" / "MODEL_CARD.md").read_text()
    again = agegen("eval", tmp_path / "run")
    assert again.exit_code == 0, again.stderr


def test_invalid_splits_are_errors_of_one_line(agegen, tmp_path):
    for arguments, exit_code, message in (
        (("demo", "-o", tmp_path / "split.txt"), 1, "must end in .csv"),
        (("demo", "--protocol", "morph"), 2, "'morph' is not one of 'utkface-21-60', 'utkface-full'"),
        ((tmp_path / "gone",), 1, "no data at"),
    ):
        result = agegen("split", *arguments)
        assert result.exit_code == exit_code
        assert message in " ".join(result.stderr.split())
    both = agegen(
        "train", "--model", "scratch", "--protocol", "utkface-full", "--split-file", "x.csv", "--data", "demo"
    )
    assert "leave --split-file out" in both.stderr
    scan = scan_images(draw_records(20))
    scan.records.frame["age"] = np.float64(5)
    with pytest.raises(DataError, match="has an exact age of 21 to 60"):
        apply_protocol(scan, find_protocol("utkface-21-60"))
    with pytest.raises(AgegenError):
        find_protocol("")
