"""The machine: how many cores there are, and which device and precision a computation uses."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agegen.distributed import read_local_rank, read_world_size
from agegen.errors import AgegenError

if TYPE_CHECKING:
    import torch


# What a container may take and what it has taken, under the second version of Linux' control groups and the first.
_MEMORY_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "bf16")
# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


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


_most_cores: int | None = None


def limit_cores(count: int) -> None:
    """Let this process use no more than so many cores: others like it have theirs."""
    global _most_cores
    _most_cores = count


def count_cores() -> int:
    """Return how many cores this process may use."""
    if _most_cores is not None:
        return _most_cores
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure_free_memory(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many bytes this process may still take: what the system has free, or its container if that is less."""
    free = [1 << 31]  # a guess where nothing tells
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        # "max", or no such file: no limit.
        with suppress(OSError, ValueError):
            free.append(int((groups / limit).read_text()) - int((groups / used).read_text()))
    return max(0, min(free))


def choose_compute(device: str = "auto", precision: str = "auto") -> Compute:
    """Return the device and precision for what ``--device`` and ``--precision`` say.

    ``auto`` takes a CUDA device where there is one, and bfloat16 where the hardware computes in it.

    Raises:
        AgegenError: an unknown name, or CUDA where there is none.
    """
    import torch

    if device not in DEVICES or precision not in PRECISIONS:
        raise AgegenError(f"--device is one of {', '.join(DEVICES)}, --precision one of {', '.join(PRECISIONS)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise AgegenError("--device cuda: no CUDA device is to be had here; use --device cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "auto":
        precision = "bf16" if _has_fast_bf16(device) else "fp32"
    # Processes that train together on one machine have a device each.
    index = read_local_rank()[0] if device == "cuda" and read_world_size() > 1 else None
    return Compute(torch.device(device) if index is None else torch.device(device, index), precision)


def keep_freed_memory() -> None:
    """Let glibc keep what is freed instead of giving it back to the system.

    The activations of each batch are large: mapped and cleared anew each time they cost a fifth of a CPU
    training and up to a third of feature extraction. Other C libraries are left as they are.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return
    for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28)):
        library.mallopt(parameter, value)


def return_freed_memory() -> None:
    """Let glibc give what is free back to the system; other C libraries are left as they are."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


def use_one_thread_each() -> None:
    """Let OpenCV compute on the thread that calls it, for programs that have a thread on each core already."""
    import cv2

    cv2.setNumThreads(1)


def _has_fast_bf16(device: str) -> bool:
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


_ERRORS_ONLY = 3


def open_session(content: bytes, threads: int) -> Any:
    """Return a session on the CPU; ``threads``: on how many it computes.

    Raises onnxruntime's errors.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _ERRORS_ONLY
    # Threads that wait by turning in circles take the cores from those that decode and search.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # From bytes, so that a file can't name others to be read beside it.
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
