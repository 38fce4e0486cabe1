"""Batches of images: augmentation, and the worker processes that prepare them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import torch

from agegen.backbone import InputSpec
from agegen.batches.images import (
    AUGMENTATION,
    LabelledPixels,
    Pixels,
    TrainBatches,
    build_train_augmentation,
    choose_workers,
    degrade,
    limit_workers,
)
from agegen.data.demo import draw_face, draw_records
from agegen.data.images import resize_image
from agegen.distributed import DistContext

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def data():
    records = draw_records(24)
    kept = np.stack([resize_image(records.decode(row), 32) for row in range(24)])
    return LabelledPixels(Pixels(records, 32, kept), records.labels)


def make_batches(data, weights=None, dist=None, workers=0):
    augmentation = build_train_augmentation(InputSpec(size=32))
    return TrainBatches(data, augmentation, 8, 5, workers, weights, dist or DistContext())


def list_images(batches, epoch=0, start=0):
    return [batch.views[0] for batch in batches.iterate(epoch, start)]


def test_a_face_drawn_twice_in_an_epoch_is_augmented_in_two_ways(data):
    """Balanced sampling repeats the faces of rare ages; identical copies would teach nothing new."""
    weights = np.array([8.0] + [16 / 23] * 23)
    batches = make_batches(data, weights)
    rows = batches.draw_epoch(0)
    images = torch.cat(list_images(batches))
    repeated = images[torch.from_numpy(np.flatnonzero(rows == 0))]
    assert len(repeated) == 8
    assert len({image.numpy().tobytes() for image in repeated}) == 8


def test_a_share_of_the_images_is_degraded_like_small_compressed_copies():
    face = draw_face(50, True, np.random.default_rng(1))
    rng = np.random.default_rng(0)
    images = [degrade(face, rng, AUGMENTATION) for _ in range(300)]
    assert all(image.shape == face.shape and image.dtype == np.uint8 for image in images)
    share = np.mean([not np.array_equal(image, face) for image in images])
    assert share == pytest.approx(AUGMENTATION.p_degraded, abs=0.08)
    always = replace(AUGMENTATION, p_degraded=1.0, p_step=1.0, sharpening=(0.0, 0.0))
    # Of the detail below the size of the smallest copy, little is left.
    detail = np.abs(np.fft.fft2(face.mean(axis=2))[40:64, 40:64]).mean()
    for seed in range(20):
        image = degrade(face, np.random.default_rng(seed), replace(always, degraded_side=(32, 32)))
        assert np.abs(np.fft.fft2(image.mean(axis=2))[40:64, 40:64]).mean() < detail / 3
        assert np.array_equal(
            image, degrade(face, np.random.default_rng(seed), replace(always, degraded_side=(32, 32)))
        )


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_resumed_epochs_workers_and_processes_give_the_same_images(data):
    weights = np.linspace(0.1, 1.9, 24)
    whole = list_images(make_batches(data, weights), epoch=3)
    assert len(whole) == 3
    assert torch.equal(list_images(make_batches(data, weights), epoch=3, start=2)[0], whole[2])
    assert torch.equal(torch.cat(list_images(make_batches(data, weights, workers=2), epoch=3)), torch.cat(whole))
    parts = [list_images(make_batches(data, weights, DistContext(rank, 3)), epoch=3) for rank in range(3)]
    for number, images in enumerate(whole):
        assert torch.equal(torch.cat([part[number] for part in parts]), images)


@pytest.mark.parametrize(("batches", "workers"), [(0, 0), (3.9, 0), (4, 1), (5.9, 1), (6, 2), (10, 4), (1000, 4)])
def test_shared_memory_limits_the_workers(monkeypatch, tmp_path, batches, workers):
    """Each worker needs room for two batches (here of 1 MB, in whole pages), and the training for two more."""
    free = int(batches * 1_003_520)
    monkeypatch.setattr("agegen.batches.images.shutil.disk_usage", lambda path: Usage(10**9, 0, free))
    assert limit_workers(4, 1_000_000, tmp_path) == workers
    assert limit_workers(0, 1_000_000, tmp_path) == 0
    assert limit_workers(4, 1_000_000, tmp_path / "none") == 0


def test_a_given_number_of_workers_is_kept(monkeypatch):
    assert choose_workers(3) == 3
    monkeypatch.setattr("agegen.batches.images.count_cores", lambda: 4)
    assert choose_workers(None) == (3 if sys.platform == "linux" else 0)


def train(faces_folder, tmp_path, *options):
    command = [sys.executable, "-m", "agegen", "train", "--model", "scratch", "--data", str(faces_folder)]
    return [*command, "--batch-size", "12", "--out", str(tmp_path / "run"), *options]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts its own shared memory")
@pytest.mark.parametrize("size", ["64k", "1m", "1400k"])
def test_training_does_not_hang_with_little_shared_memory(faces_folder, tmp_path, size):
    if not shutil.which("unshare"):
        pytest.skip("there is no unshare")
    words = " ".join(train(faces_folder, tmp_path, "--epochs", "1", "--workers", "4"))
    script = f"mount -t tmpfs -o size={size} tmpfs /dev/shm && exec {words}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=240, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "has room for" in done.stderr
    assert "Traceback" not in done.stderr


def find_workers(pid):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()
    return [int(child) for child in listed]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="signals and ps")
def test_a_worker_that_is_killed_is_one_line(faces_folder, tmp_path):
    command = train(faces_folder, tmp_path, "--epochs", "500", "--workers", "1", "--save-every", "1000")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=tmp_path)
    try:
        while process.poll() is None:
            # Workers live for an epoch: try until one is caught alive.
            for worker in find_workers(process.pid):
                try:
                    os.kill(worker, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.02)
        errors = process.communicate()[1]
    finally:
        process.kill()
    assert process.returncode == 1
    assert "a worker process was killed, probably because the machine is out of memory; resume with" in errors
    assert f"`agegen train --resume {tmp_path / 'run'} --workers 0`" in errors
    assert "Traceback" not in errors
