"""Distributed training: the processes that `accelerate launch` or `torchrun` started, or a single one."""

from __future__ import annotations

import os
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
# After the last epoch rank 0 evaluates, exports and writes files for minutes while the other ranks wait.
_TIMEOUT = timedelta(hours=2)
# Parts of the error messages of gloo and NCCL for a process that has stopped.
_LOST_WORKER = (
    "connection closed by peer",
    "connection reset",
    "broken pipe",
    "timed out",
    "timeout",
    "remote process exit",
    "communicator was aborted",
)


@dataclass(frozen=True)
class DistContext:
    """The processes of a training, seen from one of them.

    Attributes:
        rank: of this process, from 0; rank 0 prints, writes files and evaluates.
        world_size: the number of processes.
        accelerator: of accelerate; None for a single process.
    """

    rank: int = 0
    world_size: int = 1
    accelerator: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process prints, writes files and evaluates."""
        return self.rank == 0

    def local_slice(self, size: int) -> slice:
        """Return this process' slice of a batch of ``size`` faces; slices differ in length by at most one."""
        length, longer = divmod(size, self.world_size)
        start = self.rank * length + min(self.rank, longer)
        return slice(start, start + length + (self.rank < longer))

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return a network whose gradients are averaged over all processes."""
        return network if self.accelerator is None else self.accelerator.prepare_model(network)

    def reduce_sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes."""
        return values if self.accelerator is None else self.accelerator.reduce(values, "sum")

    def all_gather(self, item: T) -> list[T]:
        """Return the items of all processes, in the order of their ranks."""
        if self.accelerator is None:
            return [item]
        from accelerate.utils import gather_object

        found: list[T] = gather_object([item])
        return found

    def broadcast_object(self, item: T) -> T:
        """Return the item of rank 0."""
        if self.accelerator is None:
            return item
        from accelerate.utils import broadcast_object_list

        shared: T = broadcast_object_list([item])[0]
        return shared

    def run_on_main(self, work: Callable[[], T]) -> T:
        """Run a function on rank 0 and return its result on all ranks.

        Raises:
            AgegenError: the function raised it; all ranks raise it then.
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

    def any_rank(self, flag: bool) -> bool:
        """Return whether ``flag`` is True in any process."""
        if self.accelerator is None:
            return flag
        import torch

        return bool(self.reduce_sum(torch.tensor(float(flag), device=self.accelerator.device)) > 0)

    def broadcast_buffers(self, network: nn.Module) -> None:
        """Overwrite the buffers of all processes (running means and the like) with those of rank 0."""
        if self.accelerator is None:
            return
        from accelerate.utils import broadcast

        for buffer in network.buffers():
            buffer.copy_(broadcast(buffer))

    def barrier(self) -> None:
        """Wait until all processes have reached this point."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()


SINGLE_PROCESS = DistContext()


def init_distributed(device: torch.device) -> DistContext:
    """Connect the processes that a launcher started together; each computes on its ``device``.

    Raises:
        AgegenError: accelerate is not installed.
    """
    if read_world_size() == 1:
        return SINGLE_PROCESS
    try:
        from accelerate import Accelerator, InitProcessGroupKwargs
    except ImportError as error:
        raise AgegenError('distributed training requires accelerate: pip install "agegen[distributed]"') from error
    handlers = [InitProcessGroupKwargs(timeout=_TIMEOUT)]
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no", kwargs_handlers=handlers)
    return DistContext(accelerator.process_index, accelerator.num_processes, accelerator)


@contextmanager
def report_lost_worker(dist: DistContext, run: Path) -> Iterator[None]:
    """Turn the errors of gloo and NCCL for a process that has stopped into one line.

    Which process stopped, and why, is in the report of the launcher, which also ends the others.

    Raises:
        AgegenError: another process of the training of the folder ``run`` has stopped.
    """
    try:
        yield
    except RuntimeError as error:
        message = str(error).lower()
        if dist.world_size == 1 or not any(words in message for words in _LOST_WORKER):
            raise
        raise AgegenError(
            f"another training process stopped (see the launcher's report); resume with `agegen train --resume {run}`"
        ) from error


def shutdown_distributed() -> None:
    """Disconnect from the other processes; torch warns about processes that exit without it."""
    if read_world_size() == 1:
        return
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def read_rank() -> int:
    """Return the rank of this process in its training; 0 for a single process."""
    return _read_variable("RANK", 0) if read_world_size() > 1 else 0


def read_world_size() -> int:
    """Return the number of processes that were started together."""
    return _read_variable("WORLD_SIZE", 1)


def read_local_rank() -> tuple[int, int]:
    """Return the rank of this process on its machine, and the number of processes there."""
    return (
        (0, 1) if read_world_size() == 1 else (_read_variable("LOCAL_RANK", 0), _read_variable("LOCAL_WORLD_SIZE", 1))
    )


def _read_variable(name: str, default: int) -> int:
    """Return an environment variable of the launcher; values that are not numbers come from other programs."""
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else default
