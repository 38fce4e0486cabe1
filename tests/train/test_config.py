"""The options of a resumed run, and options that contradict it."""

from dataclasses import replace

import pytest

from agegen.errors import AgegenError, CheckpointError
from agegen.train.config import TrainConfig, read_config
from agegen.train.loop import BatchResult
from agegen.train.train import train_and_finish

pytestmark = pytest.mark.usefixtures("quick_training")


@pytest.fixture
def unfinished(faces_folder, tmp_path):
    """A run that was interrupted after its first batch."""
    config = TrainConfig("scratch", (str(faces_folder),), tmp_path / "run", epochs=2, batch_size=12, workers=0)
    for event in train_and_finish(config):
        if isinstance(event, BatchResult):
            break
    return tmp_path / "run"


def test_options_that_contradict_the_run_are_refused(unfinished, faces_folder, agegen):
    with pytest.raises(AgegenError, match=r"--epochs 5 \(the run has 2\), --seed 3 \(the run has 0\)"):
        read_config(unfinished, {"epochs": 5, "seed": 3, "batch_size": 12, "workers": 1})
    done = agegen("train", "--resume", unfinished, "--model", "vgg16")
    assert done.exit_code == 1
    assert "--model vgg16 (the run has scratch)" in done.stderr
    assert read_config(unfinished, {"model": "scratch", "data": (str(faces_folder),), "workers": 3}).workers == 3


def test_a_resumed_run_keeps_options_without_an_effect_on_the_result(faces_folder, tmp_path):
    config = TrainConfig("scratch", (str(faces_folder),), tmp_path / "run", epochs=2, batch_size=12, workers=0)
    for event in train_and_finish(replace(config, save_every=7.5, cache_dir=tmp_path / "cache")):
        if isinstance(event, BatchResult):
            break
    kept = read_config(tmp_path / "run", {})
    assert (kept.save_every, kept.workers, kept.cache_dir) == (7.5, 0, tmp_path / "cache")
    assert read_config(tmp_path / "run", {"save_every": 1.0}).save_every == 1.0


def test_finished_and_foreign_runs_are_refused(trained_run, tmp_path, agegen):
    with pytest.raises(AgegenError, match="is finished; there is nothing to resume"):
        read_config(trained_run, {})
    with pytest.raises(CheckpointError, match="no run at"):
        read_config(tmp_path / "none", {})
    assert "give --model NAME" in agegen("train").stderr
