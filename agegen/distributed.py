"""The processes of a training: one by itself, or those that `accelerate launch` or `torchrun` started together."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from agegen.errors import AgegenError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")
# At the end the first process evaluates, exports and writes by itself while the others wait; that takes minutes.
_PATIENCE = timedelta(hours=2)
# Seconds until a killed process is known to be gone.
_MOMENT = 0.3
# What gloo and NCCL say where another process is gone.
_LOST = ("connection closed by peer", "connection reset", "broken pipe", "timed out", "remote process exited", "nccl")


def read_rank() -> int:
    """Return this process' number in its training, from 0; 0 where it is alone."""
    return _read_number("RANK", 0) if read_world_size() > 1 else 0


def read_world_size() -> int:
    """Return how many processes were started together."""
    return _read_number("WORLD_SIZE", 1)


def read_local_rank() -> tuple[int, int]:
    """Return this process' number on its machine, from 0, and how many there are."""
    return (0, 1) if read_world_size() == 1 else (_read_number("LOCAL_RANK", 0), _read_number("LOCAL_WORLD_SIZE", 1))


def _read_number(name: str, usual: int) -> int:
    """Return what a launcher says in the environment; whatever else stands there is not a launcher's."""
    said = os.environ.get(name, "")
    return int(said) if said.isdigit() else usual


@dataclass(frozen=True)
class Member:
    """A process of a dist: its machine and its number there."""

    machine: str
    process: int

    def is_gone(self) -> bool:
        """Return whether it is known to have ended; of other machines nothing is."""
        if self.machine != socket.gethostname():
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        # One that has ended and that nobody has asked for yet.
        return _read_state(self.process) == "Z"


@dataclass(frozen=True)
class DistContext:
    """The processes of a training, seen from one of them; ``rank`` 0 prints, writes and evaluates."""

    rank: int = 0
    world_size: int = 1
    members: tuple[Member, ...] = ()
    accelerator: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process prints, writes and evaluates."""
        return self.rank == 0

    def local_slice(self, size: int) -> slice:
        """Return which part of a batch is this process': parts differ by one face at most, and make up the whole."""
        least, more = divmod(size, self.world_size)
        start = self.rank * least + min(self.rank, more)
        return slice(start, start + least + (self.rank < more))

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return a network whose gradients are the mean over all processes."""
        return network if self.accelerator is None else self.accelerator.prepare_model(network)

    def reduce_sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes."""
        return values if self.accelerator is None else self.accelerator.reduce(values, "sum")

    def all_gather(self, item: T) -> list[T]:
        """Return what each process has, in their order."""
        if self.accelerator is None:
            return [item]
        from accelerate.utils import gather_object

        found: list[T] = gather_object([item])
        return found

    def broadcast_object(self, item: T) -> T:
        """Return what the first process has."""
        if self.accelerator is None:
            return item
        from accelerate.utils import broadcast_object_list

        shared: T = broadcast_object_list([item])[0]
        return shared

    def run_on_main(self, work: Callable[[], T]) -> T:
        """Return what the first process alone does, in all of them; where it fails, all do.

        Raises:
            AgegenError: what the work raises.
        """
        outcome: T | AgegenError | None = None
        if self.is_main:
            try:
                outcome = work()
            except AgegenError as error:
                outcome = error
        outcome = self.broadcast_object(outcome)
        if isinstance(outcome, AgegenError):
            raise outcome
        return outcome  # type: ignore[return-value]

    def any_rank(self, wish: bool) -> bool:
        """Return whether any process says yes."""
        if self.accelerator is None:
            return wish
        import torch

        return bool(self.reduce_sum(torch.tensor(float(wish), device=self.accelerator.device)) > 0)

    def broadcast_buffers(self, network: nn.Module) -> None:
        """Give all processes the first one's buffers: running means and the like, which each has of its own faces."""
        if self.accelerator is None:
            return
        from accelerate.utils import broadcast

        for buffer in network.buffers():
            buffer.copy_(broadcast(buffer))

    def barrier(self) -> None:
        """Wait until all processes have come here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def find_gone(self) -> list[int]:
        """Return which processes are known to have ended."""
        return [rank for rank, member in enumerate(self.members) if member.is_gone()]


SINGLE_PROCESS = DistContext()


def init_distributed(device: torch.device) -> DistContext:
    """Return the team of this process: those started together find each other, on the device that each computes on.

    Raises:
        AgegenError: accelerate isn't installed.
    """
    if read_world_size() == 1:
        return SINGLE_PROCESS
    try:
        from accelerate import Accelerator, InitProcessGroupKwargs
        from accelerate.utils import gather_object
    except ImportError as error:
        raise AgegenError('a training in several processes needs accelerate: pip install "agegen[many]"') from error
    patience = InitProcessGroupKwargs(timeout=_PATIENCE)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no", kwargs_handlers=[patience])
    members = gather_object([Member(socket.gethostname(), os.getpid())])
    return DistContext(accelerator.process_index, accelerator.num_processes, tuple(members), accelerator)


class WorkerLostError(AgegenError):
    """Another process of the training is gone, or all were told to end; ``told``: whether another one says so."""

    told = False


class _Ended(BaseException):
    """The process was told to end: whoever started the team does so where one of it is gone."""


def _end(*_: Any) -> None:
    raise _Ended


@contextmanager
def report_lost_worker(dist: DistContext, run: Path) -> Iterator[None]:
    """Tell in one line of a process that is gone: whatever all do together fails then, or the launcher ends the rest.

    Raises:
        TeamLost: one is.
    """
    if dist.world_size == 1:
        yield
        return
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _end) if main else None
    try:
        yield
    except (RuntimeError, _Ended) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error).lower() for words in _LOST):
            raise
        if main:
            # The launcher ends the rest as soon as one is gone: first this process has something to say.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _describe_loss(dist, run) from error
    if main:
        signal.signal(signal.SIGTERM, before)


def _describe_loss(dist: DistContext, run: Path) -> WorkerLostError:
    # Whoever is gone is so in a moment for its parent too.
    time.sleep(_MOMENT)
    gone = dist.find_gone()
    which = f"process {', '.join(map(str, gone))} of {dist.world_size} ended" if gone else "it was ended from outside"
    go_on = f"go on with `agegen train --resume {run}`, in any number of processes"
    lost = WorkerLostError(f"the training stopped: {which}; {go_on}")
    lost.told = dist.rank != min((rank for rank in range(dist.world_size) if rank not in gone), default=0)
    return lost


def shutdown_distributed() -> None:
    """Let go of the others, where there are any: torch complains of processes that just end."""
    if read_world_size() == 1:
        return
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def _read_state(process: int) -> str:
    """Return Linux' letter for what a process does: Z where it has ended and nobody has asked for it yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
