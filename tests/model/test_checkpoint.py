"""Checkpoints: metadata, and one clear line for every kind of damage."""

import json
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from agegen.errors import CheckpointError
from agegen.model.checkpoint import load_checkpoint
from agegen.model.metadata import read_info


@pytest.fixture
def parts(trained_run):
    path = trained_run / "best.safetensors"
    with safe_open(path, framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def change(metadata, **fields):
    return {"agegen": json.dumps({**json.loads(metadata["agegen"]), **fields})}


def test_the_metadata_names_the_plugin(trained_run):
    info = read_info(trained_run / "best.safetensors")
    assert (info.model, info.distribution, info.base) == ("scratch", "agegen", None)
    assert info.training["epoch"] in (1, 2)


def test_damage_is_one_clear_line(parts, tmp_path):
    metadata, tensors = parts
    path = tmp_path / "model.safetensors"
    first = next(iter(tensors))

    def refuse(message, tensors=tensors, metadata=metadata):
        save_file(tensors, path, metadata)
        with pytest.raises(CheckpointError, match=message) as caught:
            load_checkpoint(path)
        assert "\n" not in str(caught.value)

    refuse("lacks 1 tensors", tensors={name: value for name, value in tensors.items() if name != first})
    refuse("1 unexpected tensors, the first is extra", tensors={**tensors, "extra": torch.zeros(1)})
    refuse("has the shape", tensors={**tensors, first: torch.zeros(1, 2)})
    refuse("NaN or infinite values", tensors={**tensors, first: tensors[first] * float("nan")})
    refuse("was not written by agegen", metadata={"format": "pt"})
    refuse("the format 99", metadata=change(metadata, format=99))
    refuse("invalid metadata", metadata=change(metadata, color="red"))
    refuse("unknown backbone 'gone'", metadata=change(metadata, model="gone"))
    refuse("takes another input", metadata=change(metadata, input_spec={"size": 8, "mean": [0] * 3, "std": [1] * 3}))


@pytest.mark.parametrize("content", [b"", b"short", struct.pack("<Q", 1 << 60) + b"{}", b"\x00" * 100])
def test_files_that_are_not_safetensors_are_rejected(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged or not a safetensors file"):
        load_checkpoint(path)


def test_a_truncated_checkpoint_is_rejected(trained_run, tmp_path):
    content = (trained_run / "best.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path / "model.safetensors")


def test_pickles_are_never_opened(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="pickles can run code"):
        load_checkpoint(path)


def test_a_missing_checkpoint_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "model.safetensors")
