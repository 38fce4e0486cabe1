"""Cores and memory: what the machine has, and what a container allows."""

import os
import subprocess
import sys

import pytest

from agegen.errors import AgegenError
from agegen.machine import choose_compute, count_cores, measure_free_memory

GIB = 1 << 30


@pytest.fixture
def meminfo(tmp_path):
    """A machine with 1 GiB unused memory and 6 GiB of page cache that can be dropped."""
    path = tmp_path / "meminfo"
    path.write_text(
        f"MemTotal:       {16 * GIB // 1024} kB\nMemFree:        {GIB // 1024} kB\n"
        f"MemAvailable:   {7 * GIB // 1024} kB\nHugePages_Total:       0\n"
    )
    return path


@pytest.fixture
def cgroups(tmp_path):
    """A folder of control groups; returns a function that writes files into it."""
    root = tmp_path / "cgroup"
    root.mkdir()

    def write(files):
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{content}\n")
        return root

    return write


def test_the_page_cache_is_free_memory(meminfo, tmp_path):
    assert measure_free_memory(tmp_path / "none", meminfo) == 7 * GIB


def test_a_system_without_meminfo_gets_a_guess(tmp_path):
    assert measure_free_memory(tmp_path / "none", tmp_path / "none") == 2 * GIB


@pytest.mark.parametrize(
    "files",
    [
        {
            "memory.max": 5 * GIB,
            "memory.current": 4 * GIB,
            "memory.stat": f"anon {GIB}\ninactive_file {2 * GIB}",
        },
        {
            "memory/memory.limit_in_bytes": 5 * GIB,
            "memory/memory.usage_in_bytes": 4 * GIB,
            "memory/memory.stat": f"inactive_file 0\ntotal_inactive_file {2 * GIB}",
        },
    ],
    ids=["version 2", "version 1"],
)
def test_the_memory_limit_of_a_container_counts_without_its_page_cache(cgroups, meminfo, files):
    assert measure_free_memory(cgroups(files), meminfo) == 3 * GIB


def test_a_container_without_a_memory_limit(cgroups, meminfo):
    root = cgroups({"memory.max": "max", "memory.current": 4 * GIB, "memory.stat": "inactive_file 0"})
    assert measure_free_memory(root, meminfo) == 7 * GIB


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "6400000 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({}, 8),
    ],
)
def test_the_cpu_quota_of_a_container_limits_the_cores(monkeypatch, cgroups, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert count_cores(cgroups(files)) == cores


def test_a_limit_for_the_process_comes_first():
    """In a process of its own, because the limit stays."""
    code = "from agegen.machine import count_cores, limit_cores\nlimit_cores(5)\nprint(count_cores())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "5\n"


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [
        ("tpu", "auto", "Invalid value for --device: 'tpu'. Choose auto, cpu, cuda"),
        ("cpu", "fp61", "Invalid value for --precision: 'fp61'. Choose auto, fp32, bf16"),
    ],
)
def test_invalid_devices_and_precisions_are_one_line(device, precision, message):
    with pytest.raises(AgegenError, match=message):
        choose_compute(device, precision)
