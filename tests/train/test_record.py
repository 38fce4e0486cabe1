"""The record of a training: the command, times, notices, and the metadata of its checkpoint."""

import math
from pathlib import Path

import pytest

from agegen.train.config import TrainConfig
from agegen.train.loop import EpochResult
from agegen.train.record import describe_start, epoch_to_json, format_command, format_time, name_data


def test_the_command_has_the_options_that_affect_the_result():
    config = TrainConfig(
        "scratch",
        ("faces", "more faces::0.5"),
        out=Path("run"),
        epochs=3,
        workers=2,
        cache_dir=Path("cache"),
        pretrained=False,
        freeze=True,
        soft_labels=("a.parquet", "b.parquet"),
        split_file=Path("split.csv"),
    )
    assert format_command(config) == (
        "agegen train --model scratch --data faces --data 'more faces::0.5' --epochs 3 --split-file split.csv "
        "--freeze --no-pretrained --soft-labels a.parquet --soft-labels b.parquet"
    )
    assert format_command(TrainConfig("scratch", ("demo",))) == "agegen train --model scratch --data demo"


def test_datasets_are_recorded_by_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert name_data(("faces",)) == str(tmp_path / "faces")
    assert name_data(("faces::0.5", "demo")) == [f"{tmp_path / 'faces'}::0.5", "demo"]


def test_times_sort_as_text():
    times = [1_700_000_000.9999, 1_700_000_001.0, 1_700_000_001.25, 1_900_000_000.0]
    texts = list(map(format_time, times))
    assert texts == sorted(texts)
    assert texts[2] == "2023-11-14T22:13:21.250000Z"


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ({"val": 2, "test": 1000}, "trained on 2 val and 1,000 test faces of this split: metrics on these faces are"),
        ({"val": 0, "test": 3}, "trained on 3 test faces of this split"),
        ({}, "it is unknown whether these weights were trained on validation or test faces"),
    ],
)
def test_start_weights_that_saw_held_out_faces_get_a_notice(seen, expected):
    first, second = describe_start(Path("w.safetensors"), seen)
    assert first == "starting from the weights of w.safetensors"
    assert expected in second


def test_start_weights_that_saw_no_held_out_faces_get_no_notice():
    assert len(describe_start(Path("w.safetensors"), {"val": 0, "test": 0})) == 1
    assert describe_start(None, {}) == []


def test_nan_is_none_in_json():
    epoch = EpochResult(1, 2.0, 2.5, math.nan, 0.9, 1e-3, 10.0, 100.0, True, math.nan)
    content = epoch_to_json(epoch)
    assert (content["val_mae"], content["val_in_bracket"], content["val_loss"]) == (None, None, 2.5)
