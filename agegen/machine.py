"""The machine: cores, memory, the device and precision of computations, and settings of native libraries."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agegen.distributed import read_local_rank, read_world_size
from agegen.errors import AgegenError

if TYPE_CHECKING:
    import torch


DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "bf16")

# In a container the root of the control groups is the container's own group.
_CGROUPS = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
# What measure_free_memory returns on systems without /proc/meminfo.
_ASSUMED_FREE_MEMORY = 1 << 31
# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
# onnxruntime's log level that hides warnings and errors. Errors are raised as well; its log writes them to the terminal
# with the names in the model, which may contain control characters.
_FATAL_ERRORS_ONLY = 4

_core_limit: int | None = None


@dataclass(frozen=True)
class Compute:
    """A device and the precision of its matrix products: ``fp32`` or ``bf16`` (autocast)."""

    device: torch.device
    precision: str

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which the model runs."""
        import torch

        context: AbstractContextManager[None] = torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
        )
        return context

    def __str__(self) -> str:
        return f"{self.device.type}, {self.precision}"


def choose_compute(device: str = "auto", precision: str = "auto") -> Compute:
    """Return the device and precision for the values of ``--device`` and ``--precision``.

    ``auto`` chooses a CUDA device if there is one, and bfloat16 if the hardware computes in it.

    Raises:
        AgegenError: an invalid value, or ``cuda`` without a CUDA device.
    """
    import torch

    if device not in DEVICES:
        raise AgegenError(f"Invalid value for --device: '{device}'. Choose {', '.join(DEVICES)}.")
    if precision not in PRECISIONS:
        raise AgegenError(f"Invalid value for --precision: '{precision}'. Choose {', '.join(PRECISIONS)}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise AgegenError("--device cuda: no CUDA device available; use --device cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "auto":
        precision = "bf16" if _has_fast_bf16(device) else "fp32"
    # In distributed training each process of a machine uses its own device.
    index = read_local_rank()[0] if device == "cuda" and read_world_size() > 1 else None
    return Compute(torch.device(device) if index is None else torch.device(device, index), precision)


def _has_fast_bf16(device: str) -> bool:
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = read_cpu_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def read_cpu_capabilities() -> dict[str, Any]:
    """Return torch's description of the CPU; empty if torch is too old to have one."""
    import torch

    read = getattr(torch.cpu, "get_capabilities", dict)
    return dict(read())


def limit_cores(count: int) -> None:
    """Limit the cores that this process uses; for processes that share a machine."""
    global _core_limit
    _core_limit = count


def count_cores(cgroups: Path = _CGROUPS) -> int:
    """Return how many cores this process may use: by its CPU affinity, and by the CPU quota of its container."""
    if _core_limit is not None:
        return _core_limit
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read_cpu_quota(cgroups)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _read_cpu_quota(cgroups: Path) -> float | None:
    """Return the CPU quota of a container (``docker run --cpus``) in cores; None without one."""
    # Version 2 of the control groups. No limit is written as "max", which is not a number.
    with suppress(OSError, ValueError):
        quota, period = (cgroups / "cpu.max").read_text().split()
        return int(quota) / int(period)
    # Version 1. No limit is written as -1.
    with suppress(OSError, ValueError):
        microseconds = int((cgroups / "cpu/cpu.cfs_quota_us").read_text())
        if microseconds > 0:
            return microseconds / int((cgroups / "cpu/cpu.cfs_period_us").read_text())
    return None


def measure_free_memory(cgroups: Path = _CGROUPS, meminfo: Path = _MEMINFO) -> int:
    """Return how many bytes this process can still allocate, within the memory limit of its container.

    The page cache counts as free: Linux drops it when programs need the memory.
    """
    free = [_ASSUMED_FREE_MEMORY]
    with suppress(OSError, KeyError):
        free = [_read_table(meminfo)["MemAvailable"] * 1024]
    # Version 2 of the control groups, and version 1.
    for limit, used, stat, cache in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        # "max" stands for no limit; a file that does not exist belongs to the other version.
        with suppress(OSError, ValueError, KeyError):
            taken = int((cgroups / used).read_text()) - _read_table(cgroups / stat)[cache]
            free.append(int((cgroups / limit).read_text()) - taken)
    return max(0, min(free))


def _read_table(path: Path) -> dict[str, int]:
    """Return a file of Linux with a name and a number per line, such as ``MemAvailable:  16254148 kB``."""
    rows = (line.replace(":", " ").split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def keep_freed_memory() -> None:
    """Make glibc keep freed memory instead of returning it to the system; has no effect with other C libraries.

    The activations of each batch are large. Mapping and clearing their memory again for each batch costs a fifth of
    the time of training on a CPU, and up to a third of that of feature extraction.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return
    for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28)):
        library.mallopt(parameter, value)


@contextmanager
def postpone_garbage_collection() -> Iterator[None]:
    """Import modules without garbage collection, and ignore what they created in later ones.

    Modules create so many objects that searching them for garbage, of which there is none, takes a sixth of the time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def use_one_thread_each() -> None:
    """Make OpenCV compute in the calling thread, for programs that already run a thread on each core."""
    import cv2

    cv2.setNumThreads(1)


def open_session(content: bytes, threads: int) -> Any:
    """Return an ``onnxruntime.InferenceSession`` on the CPU that computes on some threads.

    Raises onnxruntime's errors.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _FATAL_ERRORS_ONLY
    # Threads that spin while they wait take the cores from the threads that decode and detect.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # From bytes, because a model file can name further files, which would be read from its folder.
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
