"""Several processes that train together: what one process does, shared out; and what happens when one is gone."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from agegen.batches.batch import make_targets, take_part
from agegen.data.labels import Labels, SoftLabels
from agegen.distributed import SINGLE_PROCESS, DistContext, Member
from agegen.errors import AgegenError
from agegen.machine import choose_compute
from agegen.model.loss import compute_loss
from agegen.model.network import Outputs
from agegen.train.config import TrainConfig
from agegen.train.loop import FitSettings, make_trainer
from agegen.train.setup import choose_settings, prepare_training

# Backbones without batch norm and dropout, whose faces know nothing of each other: one that trains, one that is frozen.
PLAIN = """
import torch
from torch import nn
from torch.nn import functional as F
from agegen.backbone import Backbone, InputSpec, TrainingDefaults
from agegen.model.network import Outputs


class Heads(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.age, self.gender = nn.Linear(features, 117), nn.Linear(features, 1)

    def forward(self, features):
        return Outputs(self.age(features), self.gender(features).squeeze(1))


class Plain(Backbone):
    input_spec = InputSpec(size=32)
    feature_dim = 48
    defaults = TrainingDefaults(epochs=3, lr=3e-3, batch_size=50, age_balance=0.3)

    def __init__(self, *, pretrained=True):
        super().__init__(pretrained=pretrained)
        self.first = nn.Conv2d(3, 12, 5, stride=4)

    def forward(self, images):
        return F.adaptive_avg_pool2d(F.relu(self.first(images)), 2).flatten(1)

    def make_heads(self, config):
        return Heads(self.feature_dim)


class Still(Plain):
    frozen = True
    identity = "still-1"

    def __init__(self, *, pretrained=True):
        super().__init__(pretrained=pretrained)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.first.reset_parameters()
"""
ENTRIES = "[agegen.backbones]\nplain = plain_faces:Plain\nstill = plain_faces:Still\n"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder of packages with the two backbones."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "plain_faces.py").write_text(PLAIN)
    about = folder / "plain_faces-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: plain-faces\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRIES)
    return folder


def make_env(site):
    return os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


def start(site, count, *words, launcher=None):
    """Begin a training in some processes."""
    launch = ["-m"] if count == 1 else [*TORCHRUN, str(count), "-m"]
    command = [sys.executable, *(launcher or launch), "agegen", "train", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=make_env(site), start_new_session=True, **pipes)


def train(site, count, *words, launcher=None):
    process = start(site, count, *words, launcher=launcher)
    out, told = process.communicate(timeout=240)
    assert process.returncode == 0, told[-3000:]
    return out, told


def read_epochs(run):
    with (run / "epochs.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def compare_epochs(first, second, tolerance=2e-3):
    """The same losses and metrics in each epoch: sums in another order differ in their last digits."""
    rows = list(zip(read_epochs(first), read_epochs(second), strict=True))
    for one, other in rows:
        for name in ("train_loss", "val_loss", "val_mae", "val_accuracy"):
            assert float(one[name]) == pytest.approx(float(other[name]), rel=tolerance, abs=tolerance), name
    return len(rows)


COMMON = ("--data", "demo", "--precision", "fp32", "--workers", "0")


@pytest.fixture(scope="module")
def alone(site, tmp_path_factory):
    """What one process makes of both backbones."""
    folder = tmp_path_factory.mktemp("alone")
    for model in ("plain", "still"):
        train(site, 1, "--model", model, *COMMON, "--out", folder / model, "--cache-dir", folder / "cache")
    return folder


def test_parts_make_up_the_batch():
    for count in (1, 2, 3, 7):
        parts = [DistContext(rank, count).pick(50) for rank in range(count)]
        assert [row for part in parts for row in range(50)[part]] == list(range(50))
        sizes = [part.stop - part.start for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_losses_of_parts_add_up_where_labels_are_missing():
    rng = np.random.default_rng(0)
    low = rng.integers(0, 90, 31).astype(np.float32)
    high = low + rng.choice([0, 9], 31)
    female = rng.choice([0.0, 1.0, np.nan], 31).astype(np.float32)
    low[rng.random(31) < 0.4] = np.nan
    ages = rng.dirichlet(np.ones(117), 31).astype(np.float32)
    ages[rng.random(31) < 0.5] = np.nan
    labels = Labels(low, high, female, SoftLabels(ages, female))
    outputs = Outputs(torch.from_numpy(rng.normal(size=(31, 117))), torch.from_numpy(rng.normal(size=31)))
    every = np.arange(31)
    whole = float(compute_loss(outputs, make_targets(labels)))
    for count in (1, 2, 4):
        total = 0.0
        for rank in range(count):
            part, shared = take_part(labels, every, DistContext(rank, count))
            counts = None if shared is None else (shared.aged, shared.gendered)
            own = Outputs(*(column[part] for column in outputs))
            total += float(compute_loss(own, make_targets(labels.pick(part)), counts=counts))
        assert total == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("count", [2, 3])
def test_many_processes_learn_what_one_does(site, alone, tmp_path, count):
    """Three don't divide a batch of 50 evenly."""
    out, told = train(site, count, "--model", "plain", *COMMON, "--out", tmp_path / "run")
    assert compare_epochs(alone / "plain", tmp_path / "run") == 3
    # One prints and writes.
    assert out.count("epoch   1/3") == 1
    assert told.count("drawn, not photographed") == 1
    assert f"{count} processes share each batch of 50" in told
    kept = {path.name for path in (tmp_path / "run").iterdir()}
    assert kept == {path.name for path in (alone / "plain").iterdir()}
    ours, theirs = (json.loads((run / "eval.json").read_text()) for run in (tmp_path / "run", alone / "plain"))
    assert ours["age"]["mae"] == pytest.approx(theirs["age"]["mae"], rel=0.01)
    assert ours["gender"]["roc_auc"] == pytest.approx(theirs["gender"]["roc_auc"], abs=0.01)


def test_features_are_shared_out(site, alone, tmp_path):
    words = ("--model", "still", *COMMON, "--out", tmp_path / "run", "--cache-dir", tmp_path / "cache")
    train(site, 2, *words)
    assert compare_epochs(alone / "still", tmp_path / "run") == 3
    ours, theirs = (sorted((folder / "cache").rglob("view-*")) for folder in (tmp_path, alone))
    assert [path.name for path in ours] == [path.name for path in theirs]
    for one, other in zip(ours, theirs, strict=True):
        if one.suffix == ".f16":
            features = [np.fromfile(path, np.float16).astype(np.float32) for path in (one, other)]
            np.testing.assert_allclose(*features, atol=2e-3)
            assert features[0].any()


def test_accelerate_launches_it(site, alone, tmp_path):
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--main_process_port", "0", "-m"]
    train(site, 2, "--model", "plain", *COMMON, "--out", tmp_path / "run", launcher=launcher)
    assert compare_epochs(alone / "plain", tmp_path / "run") == 3


def wait_for_epoch(run, process, rows=2):
    """Wait until some epochs are over; the time that is left to the training must be long enough to disturb it."""
    deadline = time.monotonic() + 120
    while not (run / "epochs.csv").exists() or len(read_epochs(run)) < rows:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def list_workers(process):
    """Return the processes of a training by their rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            words = (path / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError, IndexError):
            continue
        ranks = [int(word[5:]) for word in words if word.startswith(b"RANK=")]
        if parent == process.pid and ranks:
            found[ranks[0]] = int(path.name)
    return found


LONG = ("--epochs", "400", "--save-every", "0")


@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_is_killed_ends_all_and_nothing_is_lost(site, tmp_path, victim):
    run = tmp_path / "run"
    process = start(site, 2, "--model", "plain", *COMMON, "--out", run, *LONG)
    wait_for_epoch(run, process)
    os.kill(list_workers(process)[victim], signal.SIGKILL)
    killed = time.monotonic()
    _, told = process.communicate(timeout=60)
    assert time.monotonic() - killed < 20
    assert process.returncode != 0
    lines = [line for line in told.splitlines() if "the training stopped" in line]
    assert len(lines) == 1, told
    assert f"process {victim} of 2 ended; go on with `agegen train --resume {run}`" in lines[0]
    check_whole(run)


def check_whole(run):
    """Nothing is half written: what is there under its name can be read."""
    from safetensors import safe_open

    assert not json.loads((run / "run.json").read_text())["finished"]
    for path in run.glob("[!.]*.safetensors"):
        with safe_open(path, "np") as file:
            assert file.keys()


def test_ctrl_c_saves_once_and_another_number_goes_on(site, alone, tmp_path):
    run = tmp_path / "run"
    process = start(site, 2, "--model", "plain", *COMMON, "--out", run, "--epochs", "12")
    wait_for_epoch(run, process)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert told.count("interrupted in epoch") == 1, told
    assert f"go on with `agegen train --resume {run}`" in told
    assert len(list(run.glob("state-*.safetensors"))) == 1
    check_whole(run)
    train(site, 1, "--resume", run)
    whole = tmp_path / "whole"
    train(site, 1, "--model", "plain", *COMMON, "--out", whole, "--epochs", "12")
    assert compare_epochs(whole, run, tolerance=2e-2) == 12


def test_a_batch_has_two_faces_for_each():
    from agegen_scratch import ScratchBackbone

    config, compute = TrainConfig("scratch", ("demo",), batch_size=3), choose_compute("cpu", "fp32")
    with pytest.raises(AgegenError, match="too small for 2 processes"):
        choose_settings(config, ScratchBackbone(), compute, DistContext(0, 2))


def test_errors_are_told_once(site, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    for words, reason in (
        (["--model", "plain", "--data", "nowhere"], "no data at nowhere"),
        (["--model", "plain", "--data", "demo", "--out", tmp_path / "taken"], "is not empty"),
    ):
        process = start(site, 2, *words)
        _, told = process.communicate(timeout=120)
        assert process.returncode != 0
        assert told.count(reason) == 1, told


def test_members_that_are_gone():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    member = Member(socket.gethostname(), child.pid)
    assert not member.is_gone()
    child.kill()
    # Not waited for yet: a zombie.
    deadline = time.monotonic() + 10
    while not member.is_gone():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.wait()
    assert member.is_gone()
    assert not Member("another machine", child.pid).is_gone()


def test_one_alone_is_a_team_too():
    assert SINGLE_PROCESS.leads
    assert SINGLE_PROCESS.gather(3) == [3]
    assert SINGLE_PROCESS.share("x") == "x"
    assert SINGLE_PROCESS.agree(True)
    with pytest.raises(AgegenError, match="no"):
        SINGLE_PROCESS.lead(fail)


def fail():
    raise AgegenError("no")


def test_compiled(tmp_path, monkeypatch):
    """The network that trains is compiled, what is kept is not."""
    from agegen.train.train import train_run

    compiled = []
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(network) or network)
    config = TrainConfig("scratch", ("demo",), tmp_path / "run", epochs=1, workers=0, compile=True)
    training = prepare_training(config, lambda *_: None)
    assert training.options.dist is SINGLE_PROCESS
    (tmp_path / "run" / "split.csv").unlink()
    for _ in train_run(config):
        pass
    assert len(compiled) == 1
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(AgegenError, match="--compile wants a C\\+\\+ compiler"):
        make_trainer(torch.nn.Linear(2, 2), FitSettings(1, 0.1, 0.0), choose_compute("cpu", "fp32"), compiled=True)
    assert (tmp_path / "run" / "best.onnx").is_file()
