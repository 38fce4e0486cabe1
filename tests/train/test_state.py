"""Trainings that are killed, interrupted or damaged end as if nothing had happened once they are resumed."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from holding import StoppedCommand

from agegen.errors import AgegenError, CheckpointError, TrainingInterrupted
from agegen.machine import choose_compute
from agegen.model.checkpoint import load_checkpoint, read_used_faces
from agegen.runs import RunFolder, create_run
from agegen.train.config import TrainConfig, read_config
from agegen.train.loop import BatchResult, EpochResult, FitSettings, TrainNotice, make_trainer
from agegen.train.state import StateFiles
from agegen.train.train import train_and_finish

OPTIONS = {"epochs": 2, "batch_size": 12, "device": "cpu", "workers": 0, "save_every": 0.0}


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_training")]


@pytest.fixture(scope="module")
def whole(faces_folder, tmp_path_factory):
    """A training that was not interrupted."""
    path = tmp_path_factory.mktemp("whole") / "run"
    list(train_and_finish(make_config(faces_folder, path)))
    return path


@pytest.fixture
def data(faces_folder):
    return faces_folder


def make_config(data, path):
    return TrainConfig("scratch", (str(data),), path, **OPTIONS)


def start(data, path, stop_after):
    """Train for some batches, then stop as if killed."""
    batches = 0
    for event in train_and_finish(make_config(data, path)):
        batches += isinstance(event, BatchResult)
        if batches == stop_after:
            return


def resume(path):
    return list(train_and_finish(read_config(path, {"workers": 0, "save_every": 0.0})))


def list_notices(events):
    return [notice for event in events if isinstance(event, TrainNotice) for notice in event.notices]


def check_equal(first, second):
    states = [load_checkpoint(path / "best.safetensors")[1].state_dict() for path in (first, second)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert json.loads((first / "eval.json").read_text()) == json.loads((second / "eval.json").read_text())


@pytest.mark.parametrize("stop_after", [1, 3, 4, 6])
def test_a_resumed_run_ends_bit_identical(whole, data, tmp_path, stop_after):
    start(data, tmp_path / "run", stop_after)
    events = resume(tmp_path / "run")
    check_equal(whole, tmp_path / "run")
    assert sum(isinstance(event, EpochResult) for event in events) == (2 if stop_after < 5 else 1)
    assert not list((tmp_path / "run").glob("state-*"))


# Where a training is stopped: while a state is written, after the second one, between the epochs, after both epochs.
MOMENTS = {
    "writing": ("agegen.train.state.write_bytes", 2, True),
    "first epoch": ("agegen.train.state.StateFiles.save", 2, False),
    "between epochs": ("agegen.train.train.keep_epoch", 1, False),
    "after the last": ("agegen.train.train.calibrate_best", 1, True),
}


def stop_at(data, run, tmp_path, moment, **options):
    target, call, before = MOMENTS[moment]
    arguments = ["train", "--model", "scratch", "--device", "cpu", "--workers", "1", "--save-every", "0"]
    arguments += ["--epochs", "2", "--batch-size", "12", "--data", data, "--out", run]
    return StoppedCommand(tmp_path, arguments, target, call, before, stdout=subprocess.DEVNULL, **options)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("moment", MOMENTS)
def test_sigkill_at_any_moment_loses_nothing(whole, data, tmp_path, moment):
    run = tmp_path / "run"
    stopped = stop_at(data, run, tmp_path, moment, stderr=subprocess.DEVNULL)
    stopped.wait()
    stopped.process.kill()
    stopped.process.wait()
    assert json.loads((run / "run.json").read_text())["finished"] is None
    resume(run)
    check_equal(whole, run)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_finishes_the_batch_and_says_how_to_resume(whole, data, tmp_path):
    run = tmp_path / "run"
    stopped = stop_at(data, run, tmp_path, "first epoch", stderr=subprocess.PIPE, start_new_session=True)
    stopped.wait()
    # To the whole process group including the workers, as a terminal does.
    os.killpg(stopped.process.pid, signal.SIGINT)
    stopped.release()
    _, errors = stopped.process.communicate(timeout=60)
    assert stopped.process.returncode == 130
    assert f"agegen train --resume {run}" in errors.decode()
    assert b"Traceback" not in errors
    resume(run)
    check_equal(whole, run)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_after_the_last_epoch_ends_at_once(whole, data, tmp_path):
    """There is no batch to finish; the run can be resumed from there."""
    run = tmp_path / "run"
    stopped = stop_at(data, run, tmp_path, "after the last", stderr=subprocess.PIPE, start_new_session=True)
    stopped.wait()
    os.killpg(stopped.process.pid, signal.SIGINT)
    _, errors = stopped.process.communicate(timeout=60)
    assert stopped.process.returncode == 130
    assert b"finishing the batch" not in errors
    assert f"interrupted; resume with `agegen train --resume {run}`" in errors.decode()
    assert b"Traceback" not in errors
    assert not [event for event in resume(run) if isinstance(event, BatchResult)]
    check_equal(whole, run)


def test_a_stop_between_batches_raises_training_interrupted(data, tmp_path):
    asked = iter([False, False, True])
    with pytest.raises(TrainingInterrupted, match="interrupted in epoch 1; resume with"):
        list(train_and_finish(make_config(data, tmp_path / "run"), should_stop=lambda: next(asked)))
    assert TrainingInterrupted.exit_code == 130
    assert list((tmp_path / "run").glob("state-*"))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied"])
def test_a_damaged_state_is_named_and_the_previous_one_is_used(whole, data, tmp_path, damage):
    run = tmp_path / "run"
    start(data, run, 4)
    newest = max(run.glob("state-*"), key=lambda path: path.stat().st_mtime_ns)
    content = bytearray(newest.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    newest.write_bytes(content if damage == "flipped" else content[: len(content) // 2 if damage == "truncated" else 0])
    events = resume(run)
    damaged, position = list_notices(events)[:2]
    assert damaged.startswith(f"{newest} is damaged: ")
    assert position.startswith("resuming in epoch 1, after batch 3 (state-")
    assert newest.name not in position
    check_equal(whole, run)


@pytest.mark.parametrize("damage", ["emptied", "missing"])
def test_without_a_sound_state_the_training_starts_again(whole, data, tmp_path, damage):
    run = tmp_path / "run"
    start(data, run, 4)
    states = sorted(run.glob("state-*"))
    assert len(states) == 2
    for path in states:
        path.write_bytes(b"") if damage == "emptied" else path.unlink()
    notices = list_notices(resume(run))
    reason = "no sound state is left" if damage == "emptied" else "no saved state was found"
    assert f"{reason}: the training starts again at epoch 1" in notices
    assert sum("is damaged" in notice for notice in notices) == (2 if damage == "emptied" else 0)
    check_equal(whole, run)


def test_a_folder_without_a_first_state_is_accepted_again(whole, data, tmp_path, agegen):
    """A kill while the training is prepared leaves the split alone."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(whole / "split.csv", run)
    for name in (".lock", ".split-abcd1234.csv", ".run-abcd1234.json"):
        (run / name).write_text("")
    done = agegen("train", "--resume", run)
    assert done.exit_code == 1
    assert f"has no run.json. Its training was stopped before it began: start it again with --out {run}." in done.stderr
    list(train_and_finish(make_config(data, run)))
    check_equal(whole, run)
    # Now it is used, as is a folder with files of one's own.
    with pytest.raises(AgegenError, match="is not empty"):
        list(train_and_finish(make_config(data, run)))
    start(data, tmp_path / "other", 1)
    with pytest.raises(AgegenError, match=r"has an unfinished run\. Resume it with `agegen train --resume .*other`"):
        list(train_and_finish(make_config(data, tmp_path / "other")))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(AgegenError, match="is not empty"):
        list(train_and_finish(make_config(data, tmp_path / "mine")))


def test_two_trainings_in_one_folder_do_not_overwrite_each_other(data, tmp_path):
    """The second one ends before it writes its split, wherever the first one is."""
    run = tmp_path / "run"
    with RunFolder(create_run(run, "scratch").path).lock():
        with pytest.raises(AgegenError, match="is in use by another process"):
            list(train_and_finish(make_config(data, run)))
        assert not (run / "split.csv").exists()
    assert create_run(None, "scratch").path != create_run(None, "scratch").path


@pytest.mark.parametrize("stop_after", [1, 6])
def test_a_fine_tuning_is_resumed_from_anywhere(whole, data, tmp_path, monkeypatch, stop_after):
    """Paths in the options are absolute, and the weights that it started from may be gone."""
    shutil.copytree(whole, tmp_path / "first")
    monkeypatch.chdir(tmp_path)
    given = {"init": "first", "split_file": Path("first/split.csv"), "cache_dir": Path("cache")}
    for name in ("straight", "run"):
        batches = 0
        for event in train_and_finish(replace(make_config(data, tmp_path / name), **given)):
            batches += isinstance(event, BatchResult)
            if batches == stop_after and name == "run":
                break
    if stop_after == 6:
        # An epoch is finished, so its checkpoint knows what the first training has seen.
        shutil.rmtree(tmp_path / "first")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert read_config(tmp_path / "run", {"init": "../first"} if stop_after == 1 else {}).init == str(
        tmp_path / "first"
    )
    resume(tmp_path / "run")
    check_equal(tmp_path / "straight", tmp_path / "run")
    used = [read_used_faces(tmp_path / name / "best.safetensors") for name in ("straight", "run")]
    assert all(np.array_equal(one, other) for one, other in zip(*used, strict=True))


def test_a_full_disk_is_one_line_and_the_last_state_stays(whole, data, tmp_path, monkeypatch):
    run = tmp_path / "run"
    saved = []
    write = os.fsync

    def fill_up(handle):
        saved.append(handle)
        if len(saved) == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(handle)

    monkeypatch.setattr(os, "fsync", fill_up)
    with pytest.raises(AgegenError, match=r"cannot write .*No space left on device"):
        list(train_and_finish(make_config(data, run)))
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    resume(run)
    check_equal(whole, run)


def test_a_run_in_use_is_refused(data, tmp_path):
    first = train_and_finish(make_config(data, tmp_path / "run"))
    next(first)
    with pytest.raises(AgegenError, match="is in use by another process"):
        list(train_and_finish(read_config(tmp_path / "run", {})))
    first.close()


@pytest.mark.usefixtures("random_vgg16")
def test_the_state_of_another_model_is_refused(data, tmp_path):
    run = tmp_path / "run"
    start(data, run, 2)
    config = read_config(run, {})
    with pytest.raises(AgegenError, match=r"cannot resume .*: the model was scratch and is now vgg16"):
        list(train_and_finish(replace(config, model="vgg16")))
    trainer = make_trainer(torch.nn.Linear(2, 2), FitSettings(1, 0.1, 0.0), choose_compute("cpu", "fp32"))
    with pytest.raises(CheckpointError, match="is the state of another model"):
        states = StateFiles(run)
        states.read(trainer.dist)
        states.restore(trainer)


@pytest.mark.parametrize("change", ["gone", "label", "version", "weight_decay", "compute"])
def test_a_run_with_changed_data_or_settings_is_refused(faces_folder, tmp_path, change):
    folder = tmp_path / "faces"
    shutil.copytree(faces_folder, folder)
    run = tmp_path / "run"
    start(folder, run, 2)
    record = json.loads((run / "run.json").read_text())
    if change == "gone":
        next(folder.iterdir()).unlink()
    elif change == "label":
        # The age is in the name: the same picture is a year older.
        path = next(folder.iterdir())
        age, _, rest = path.name.partition("_")
        path.rename(folder / f"{int(age) + 1}_{rest}")
    elif change == "version":
        record["plugin"]["version"] = "0.0.9"
    elif change == "weight_decay":
        record["settings"]["weight_decay"] = 0.5
    else:
        record["settings"]["compute"] = "cuda, bf16"
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(
        AgegenError, match=r"cannot resume .* was .* and is now .*; restore it, or start a new training"
    ):
        resume(run)


def test_a_run_with_changed_labels_is_refused(faces_folder, tmp_path):
    names = sorted(faces_folder.iterdir())
    rows = [f"{path},{path.name.split('_')[0]},{path.name.split('_')[1]}" for path in names]
    table, run = tmp_path / "t.csv", tmp_path / "run"
    table.write_text("\n".join(["path,age,gender", *rows]))
    start(table, run, 2)
    before = table.read_text()
    table.write_text(before.replace(rows[7], f"{names[7]},99,1"))
    with pytest.raises(AgegenError, match=r"cannot resume .*: ages or genders of its faces have changed"):
        resume(run)
    record = json.loads((run / "run.json").read_text())
    # Earlier versions did not record the labels.
    del record["data"]["labels"]
    (run / "run.json").write_text(json.dumps(record))
    resume(run)


def test_equal_trainings_give_equal_checkpoints(data, tmp_path):
    """Byte by byte, resumed ones as well: they contain no times."""
    for name in ("first", "again"):
        list(train_and_finish(make_config(data, tmp_path / name)))
    start(data, tmp_path / "resumed", 3)
    resume(tmp_path / "resumed")
    contents = [(tmp_path / name / "best.safetensors").read_bytes() for name in ("first", "again", "resumed")]
    assert contents[0] == contents[1] == contents[2]


@pytest.mark.parametrize("step", ["write_card", "plot_curves", "export_model"])
def test_a_run_killed_after_the_last_epoch_can_be_resumed(whole, data, tmp_path, monkeypatch, step):
    class Killed(BaseException):
        pass

    def kill(*arguments, **options):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(f"agegen.train.train.{step}", kill)
        with pytest.raises(Killed):
            list(train_and_finish(make_config(data, tmp_path / "run")))
    assert not json.loads((tmp_path / "run" / "run.json").read_text())["finished"]
    events = resume(tmp_path / "run")
    assert not [event for event in events if isinstance(event, BatchResult)]
    check_equal(whole, tmp_path / "run")
    assert (tmp_path / "run" / "MODEL_CARD.md").is_file()


def test_states_alternate_between_two_files(tmp_path):
    trainer = make_trainer(torch.nn.Linear(2, 2), FitSettings(1, 0.1, 0.0), choose_compute("cpu", "fp32"))
    states = StateFiles(tmp_path)
    names = []
    for batch in (1, 2, 3):
        trainer.progress.batch = batch
        states.save(trainer)
        names.append(sorted(path.name for path in tmp_path.iterdir()))
    assert names == [["state-1.safetensors"], *[["state-1.safetensors", "state-2.safetensors"]] * 2]
    other = StateFiles(tmp_path)
    trainer.progress.batch = 0
    assert other.read(trainer.dist)
    other.restore(trainer)
    assert trainer.progress.batch == 3
    other.save(trainer)
    trainer.progress.batch = 0
    again = StateFiles(tmp_path)
    assert again.read(trainer.dist)
    again.restore(trainer)
    assert trainer.progress.batch == 3


def test_a_start_that_fails_leaves_no_run_folder(data, tmp_path):
    config = replace(make_config(data, tmp_path / "run"), soft_labels=(str(tmp_path / "none.parquet"),))
    with pytest.raises(AgegenError, match=r"none\.parquet"):
        list(train_and_finish(config))
    assert not (tmp_path / "run").exists()
