"""The training state for resuming, in two alternating files, so that one of them is always intact."""

from __future__ import annotations

import hashlib
import json
import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agegen.distributed import DistContext
from agegen.errors import CheckpointError
from agegen.files import write_bytes
from agegen.train.loop import Trainer

# Of the JSON with progress and random generators, in the metadata of the file.
_METADATA_KEY = "agegen-state"
_NAMES = ("state-1.safetensors", "state-2.safetensors")


class StateFiles:
    """Saves the state to two files in turn: the newest intact one is kept until the next one is complete.

    Attributes:
        notices: about damaged files and the position to resume from, after :meth:`read`.
    """

    def __init__(self, folder: Path) -> None:
        self._paths = [folder / name for name in _NAMES]
        self._turn = 0
        self._newest: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        self.notices: tuple[str, ...] = ()
        self._saved = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since the state was saved, or since this object was created."""
        return time.monotonic() - self._saved

    def save(self, trainer: Trainer) -> None:
        """Write the state: weights, averaged weights, optimizer, random generators, progress.

        Raises:
            AgegenError: the file cannot be written; the previous one stays intact.
        """
        from safetensors.torch import save

        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _collect_tensors(trainer).items()}
        content = {"progress": asdict(trainer.progress), "random": _read_generators()}
        text = json.dumps(content, sort_keys=True)
        metadata = {_METADATA_KEY: text, "sha256": _digest(tensors, text)}
        write_bytes(self._paths[self._turn], save(tensors, metadata=metadata))
        self._turn = 1 - self._turn
        self._saved = time.monotonic()

    def read(self, dist: DistContext) -> bool:
        """Read the newest intact state; return whether there is one. Rank 0 reads the file for all processes."""
        turn, self._newest, self.notices = dist.run_on_main(self._read_newest)
        if self._newest is not None:
            self._turn = 1 - turn
        return self._newest is not None

    def restore(self, trainer: Trainer) -> None:
        """Load the state that :meth:`read` found into a trainer; without one the trainer is left at its start.

        Raises:
            CheckpointError: the state belongs to another model.
        """
        if self._newest is not None:
            _fill_trainer(self._paths[1 - self._turn], trainer, *self._newest)
            self._newest = None
        if trainer.dist.rank:
            # With the same generator, dropout would drop the same places in all processes.
            torch.manual_seed(trainer.progress.epoch * trainer.dist.world_size + trainer.dist.rank)

    def _read_newest(self) -> tuple[int, tuple[dict[str, Tensor], dict[str, Any]] | None, tuple[str, ...]]:
        """Return the number of the file with the newest intact state, its content, and notices."""
        found, notices = [], []
        for turn, path in enumerate(self._paths):
            if not path.exists():
                continue
            try:
                found.append((turn, *_read_state(path)))
            except CheckpointError as error:
                notices.append(str(error))
        if not found:
            reason = "no sound state is left" if notices else "no saved state was found"
            return 0, None, (*notices, f"{reason}: the training starts again at epoch 1")
        turn, tensors, content = max(found, key=lambda state: _read_position(state[2]))
        epoch, batch = _read_position(content)
        return (
            turn,
            (tensors, content),
            (*notices, f"resuming in epoch {epoch + 1}, after batch {batch} ({_NAMES[turn]})"),
        )

    def clear(self) -> None:
        """Delete the state of a finished training."""
        for path in self._paths:
            path.unlink(missing_ok=True)


def _read_position(content: dict[str, Any]) -> tuple[int, int]:
    """Return the finished epochs and batches of a state."""
    return int(content["progress"]["epoch"]), int(content["progress"]["batch"])


def _collect_tensors(trainer: Trainer) -> dict[str, Tensor]:
    tensors = {f"network.{name}": tensor for name, tensor in trainer.network.state_dict().items()}
    tensors |= {f"averaged.{name}": tensor for name, tensor in trainer.averaged.state_dict().items()}
    for index, state in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    tensors["random.torch"] = torch.get_rng_state()
    if trainer.compute.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(trainer.compute.device)
    # Tied or frozen weights may share memory, which safetensors does not accept.
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _read_generators() -> dict[str, Any]:
    kind, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [kind, list(numbers), gauss],
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, cached],
    }


def _restore_generators(content: dict[str, Any]) -> None:
    kind, numbers, gauss = content["python"]
    random.setstate((kind, tuple(numbers), gauss))
    name, keys, *rest = content["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))


def _read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        text = metadata[_METADATA_KEY]
        if _digest(tensors, text) != metadata["sha256"]:
            raise ValueError("wrong checksum")
        content: dict[str, Any] = json.loads(text)
        return tensors, content
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _fill_trainer(path: Path, trainer: Trainer, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
    try:
        trainer.network.load_state_dict(_pick(tensors, "network."))
        trainer.averaged.load_state_dict(_pick(tensors, "averaged."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _pick(tensors, "optimizer.").items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = tensor
        groups = trainer.optimizer.state_dict()["param_groups"]
        trainer.optimizer.load_state_dict({"state": state, "param_groups": groups})
        torch.set_rng_state(tensors["random.torch"])
        if "random.cuda" in tensors and trainer.compute.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], trainer.compute.device)
        _restore_generators(content["random"])
        for name, value in content["progress"].items():
            setattr(trainer.progress, name, value)
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        cause = str(error).splitlines()[0]
        raise CheckpointError(f"{path} is the state of another model or version of agegen: {cause}") from error


def _pick(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
