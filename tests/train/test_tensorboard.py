"""The TensorBoard log of a training, read back with TensorBoard's own reader."""

import json
import sys

import pytest

from agegen.errors import AgegenError
from agegen.train.tensorboard import log_events


def test_losses_and_metrics_are_logged(agegen, faces_folder, tmp_path, quick_training):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ("--model", "scratch", "--data", faces_folder, "--out", tmp_path / "run", "--epochs", 2, "--workers", 0)
    assert agegen("train", *words, "--log", "tensorboard").exit_code == 0
    read = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    tags = read.Tags()
    assert {"loss/batch", "loss/train", "loss/val", "val/mae", "val/accuracy", "train/lr", "test/mae"} <= set(
        tags["scalars"]
    )
    assert [event.step for event in read.Scalars("val/mae")] == [1, 2]
    report = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert read.Scalars("test/mae")[0].value == pytest.approx(report["age"]["mae"], abs=1e-3)
    assert tags["images"] == []


def test_without_its_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(AgegenError, match=r'pip install "agegen\[tensorboard\]"'):
        next(log_events(iter(())))


def test_other_logs_are_refused(agegen):
    assert "'paper' is not one of" in agegen("train", "--model", "scratch", "--log", "paper").stderr
