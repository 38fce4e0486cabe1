"""Distributed training: several processes learn what one does, and one that dies loses nothing."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from agegen.batches.batch import make_targets, take_local_part
from agegen.data.labels import Labels, SoftLabels
from agegen.distributed import SINGLE_PROCESS, DistContext, report_lost_worker
from agegen.errors import AgegenError
from agegen.machine import choose_compute
from agegen.model.loss import compute_loss
from agegen.model.network import Outputs
from agegen.train.config import TrainConfig
from agegen.train.loop import FitSettings, make_trainer
from agegen.train.setup import choose_settings, prepare_training

pytestmark = pytest.mark.slow

# Backbones without batch norm and dropout, so that faces do not affect each other: a trainable and a frozen one.
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
    """A folder with an installed package of the two backbones."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "plain_faces.py").write_text(PLAIN)
    about = folder / "plain_faces-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: plain-faces\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRIES)
    return folder


def make_env(site):
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


def start(site, count, *words, launcher=None):
    """Start a training in some processes."""
    launch = ["-m"] if count == 1 else [*TORCHRUN, str(count), "-m"]
    command = [sys.executable, *(launcher or launch), "agegen", "train", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=make_env(site), start_new_session=True, **pipes)


def train(site, count, *words, launcher=None):
    process = start(site, count, *words, launcher=launcher)
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]
    return out, errors


def read_epochs(run):
    with (run / "epochs.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def compare_epochs(first, second, tolerance=2e-3):
    """Compare the losses and metrics of each epoch; sums in another order differ in their last digits."""
    rows = list(zip(read_epochs(first), read_epochs(second), strict=True))
    for one, other in rows:
        for name in ("train_loss", "val_loss", "val_mae", "val_accuracy"):
            assert float(one[name]) == pytest.approx(float(other[name]), rel=tolerance, abs=tolerance), name
    return len(rows)


COMMON = ("--data", "demo", "--precision", "fp32", "--workers", "0")


@pytest.fixture(scope="module")
def alone(site, tmp_path_factory):
    """The runs of both backbones, trained by a single process."""
    folder = tmp_path_factory.mktemp("alone")
    for model in ("plain", "still"):
        train(site, 1, "--model", model, *COMMON, "--out", folder / model, "--cache-dir", folder / "cache")
    return folder


def test_the_slices_of_all_processes_are_the_batch():
    for count in (1, 2, 3, 7):
        parts = [DistContext(rank, count).local_slice(50) for rank in range(count)]
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
            rows, _, shared = take_local_part(labels, every, 0, DistContext(rank, count))
            counts = None if shared is None else (shared.known_ages, shared.known_genders)
            own = Outputs(*(column[rows] for column in outputs))
            total += float(compute_loss(own, make_targets(labels.pick(rows)), counts=counts))
        assert total == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("count", [2, 3])
def test_many_processes_learn_what_one_does(site, alone, tmp_path, count):
    """Three do not divide a batch of 50 evenly."""
    out, errors = train(site, count, "--model", "plain", *COMMON, "--out", tmp_path / "run")
    assert compare_epochs(alone / "plain", tmp_path / "run") == 3
    # Only rank 0 prints and writes.
    assert out.count("epoch   1/3") == 1
    assert errors.count("drawn, not photographed") == 1
    assert f"{count} processes share each batch of 50" in errors
    kept = {path.name for path in (tmp_path / "run").iterdir()}
    assert kept == {path.name for path in (alone / "plain").iterdir()}
    ours, theirs = (json.loads((run / "eval.json").read_text()) for run in (tmp_path / "run", alone / "plain"))
    assert ours["age"]["mae"] == pytest.approx(theirs["age"]["mae"], rel=0.01)
    assert ours["gender"]["roc_auc"] == pytest.approx(theirs["gender"]["roc_auc"], abs=0.01)


def test_processes_share_the_extraction_of_features(site, alone, tmp_path):
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


def test_accelerate_launches_a_training(site, alone, tmp_path):
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--main_process_port", "0", "-m"]
    train(site, 2, "--model", "plain", *COMMON, "--out", tmp_path / "run", launcher=launcher)
    assert compare_epochs(alone / "plain", tmp_path / "run") == 3


def wait_for_epoch(run, process, rows=2):
    """Wait until some epochs are finished; the training must have enough left for a test to interrupt it."""
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
def test_a_process_that_is_killed_ends_the_training_which_can_be_resumed(site, tmp_path, victim):
    run = tmp_path / "run"
    process = start(site, 2, "--model", "plain", *COMMON, "--out", run, *LONG)
    wait_for_epoch(run, process)
    os.kill(list_workers(process)[victim], signal.SIGKILL)
    killed = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - killed < 20
    assert process.returncode != 0
    # The launcher reports the process; the other one is ended at once, or fails in the next exchange with one line.
    assert f"rank      : {victim} (local_rank: {victim})" in errors
    assert "exitcode  : -9" in errors
    assert errors.count("another training process stopped") <= 1
    check_intact(run)
    process = start(site, 2, "--resume", run)
    wait_for_epoch(run, process, rows=len(read_epochs(run)) + 1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)


def test_the_error_for_a_lost_process_is_one_line(tmp_path):
    for message in (
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711",
        "NCCL error: remote process exited or there was a network error",
    ):
        lost = pytest.raises(AgegenError, match=r"another training process stopped .* --resume RUN")
        with lost, report_lost_worker(DistContext(0, 2), Path("RUN")):
            raise RuntimeError(message)
        with pytest.raises(RuntimeError), report_lost_worker(SINGLE_PROCESS, Path("RUN")):
            raise RuntimeError(message)
    with pytest.raises(RuntimeError, match="shapes"), report_lost_worker(DistContext(0, 2), Path("RUN")):
        raise RuntimeError("the shapes of two tensors differ")


def check_intact(run):
    """Check that the run is unfinished and that its files can be read."""
    from safetensors import safe_open

    assert not json.loads((run / "run.json").read_text())["finished"]
    for path in run.glob("[!.]*.safetensors"):
        with safe_open(path, "np") as file:
            assert file.keys()


def test_ctrl_c_saves_once_and_another_number_of_processes_resumes(site, alone, tmp_path):
    run = tmp_path / "run"
    process = start(site, 2, "--model", "plain", *COMMON, "--out", run, "--epochs", "12")
    wait_for_epoch(run, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert errors.count("interrupted in epoch") == 1, errors
    assert f"resume with `agegen train --resume {run}`" in errors
    assert len(list(run.glob("state-*.safetensors"))) == 1
    check_intact(run)
    train(site, 1, "--resume", run)
    whole = tmp_path / "whole"
    train(site, 1, "--model", "plain", *COMMON, "--out", whole, "--epochs", "12")
    assert compare_epochs(whole, run, tolerance=2e-2) == 12


def test_a_batch_has_two_faces_for_each_process():
    from agegen_scratch import ScratchBackbone

    config, compute = TrainConfig("scratch", ("demo",), batch_size=3), choose_compute("cpu", "fp32")
    with pytest.raises(AgegenError, match="too small for 2 processes"):
        choose_settings(config, ScratchBackbone(), compute, DistContext(0, 2))


def test_errors_are_printed_once(site, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    for words, reason in (
        (["--model", "plain", "--data", "nowhere"], "no data at nowhere"),
        (["--model", "plain", "--data", "demo", "--out", tmp_path / "taken"], "is not empty"),
    ):
        process = start(site, 2, *words)
        _, errors = process.communicate(timeout=120)
        assert process.returncode != 0
        assert errors.count(reason) == 1, errors


def test_a_single_process_has_the_same_methods():
    assert SINGLE_PROCESS.is_main
    assert SINGLE_PROCESS.all_gather(3) == [3]
    assert SINGLE_PROCESS.broadcast_object("x") == "x"
    assert SINGLE_PROCESS.any_rank(True)
    assert not SINGLE_PROCESS.any_rank(False)
    with pytest.raises(AgegenError, match="no"):
        SINGLE_PROCESS.run_on_main(fail)


def fail():
    raise AgegenError("no")


def test_compile_trains_a_compiled_network(tmp_path, monkeypatch):
    """The network that trains is compiled, the one that is saved is not."""
    from agegen.train.train import train_and_finish

    compiled = []
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(network) or network)
    config = TrainConfig("scratch", ("demo",), tmp_path / "run", epochs=1, workers=0, compile=True)
    training = prepare_training(config, lambda *_: None)
    assert training.options.dist is SINGLE_PROCESS
    for _ in train_and_finish(config):
        pass
    assert len(compiled) == 1
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(AgegenError, match="--compile requires a C\\+\\+ compiler"):
        make_trainer(torch.nn.Linear(2, 2), FitSettings(1, 0.1, 0.0), choose_compute("cpu", "fp32"), compiled=True)
    assert (tmp_path / "run" / "best.onnx").is_file()
