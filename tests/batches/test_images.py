"""Loader processes: how many, what they share, and what is said of one that is killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import pytest

from agegen.batches.images import limit_workers
from agegen.machine import measure_free_memory

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("batches", "workers"), [(0, 0), (3.9, 0), (4, 1), (5.9, 1), (6, 2), (10, 4), (1000, 4)])
def test_shared_memory_is_looked_at_first(monkeypatch, tmp_path, batches, workers):
    """Each loader needs room for two batches, here of 1 MB, in whole pages, and the training for two more."""
    free = int(batches * 1_003_520)
    monkeypatch.setattr("agegen.batches.images.shutil.disk_usage", lambda path: Usage(10**9, 0, free))
    assert limit_workers(4, 1_000_000, tmp_path) == workers
    assert limit_workers(0, 1_000_000, tmp_path) == 0
    assert limit_workers(4, 1_000_000, tmp_path / "none") == 0


def test_the_container_counts(tmp_path):
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("2000000\n")
    assert measure_free_memory(tmp_path) == 3_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert measure_free_memory(tmp_path) > 3_000_000


def train(faces_folder, tmp_path, *options):
    command = [sys.executable, "-m", "agegen", "train", "--model", "scratch", "--data", str(faces_folder)]
    return [*command, "--batch-size", "12", "--out", str(tmp_path / "run"), *options]


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts its own shared memory")
@pytest.mark.parametrize("size", ["64k", "1m", "1400k"])
def test_a_small_shared_memory_is_no_reason_to_hang(faces_folder, tmp_path, size):
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


def find_loaders(pid):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()
    return [int(child) for child in listed]


@pytest.mark.skipif(sys.platform != "linux", reason="signals and ps")
def test_a_loader_that_is_killed_is_one_line(faces_folder, tmp_path):
    command = train(faces_folder, tmp_path, "--epochs", "500", "--workers", "1", "--save-every", "1000")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=tmp_path)
    try:
        while process.poll() is None:
            # Loaders live for an epoch: again, until one is caught alive.
            for loader in find_loaders(process.pid):
                try:
                    os.kill(loader, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.02)
        errors = process.communicate()[1]
    finally:
        process.kill()
    assert process.returncode == 1
    assert "a loader process was killed, probably for want of memory; go on with" in errors
    assert "Traceback" not in errors
