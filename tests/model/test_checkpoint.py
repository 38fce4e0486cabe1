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


def test_info_tells_what_made_it(trained_run):
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
    refuse("1 tensors too many, the first: extra", tensors={**tensors, "extra": torch.zeros(1)})
    refuse("has the shape", tensors={**tensors, first: torch.zeros(1, 2)})
    refuse("values that are no numbers", tensors={**tensors, first: tensors[first] * float("nan")})
    refuse("was not written by agegen", metadata={"format": "pt"})
    refuse("another format", metadata=change(metadata, format=99))
    refuse("metadata that this agegen can't read", metadata=change(metadata, colour="red"))
    refuse("no backbone is called 'gone'", metadata=change(metadata, model="gone"))
    refuse("for another input", metadata=change(metadata, input_spec={"size": 8, "mean": [0] * 3, "std": [1] * 3}))


@pytest.mark.parametrize("content", [b"", b"short", struct.pack("<Q", 1 << 60) + b"{}", b"\x00" * 100])
def test_what_is_no_safetensors_is_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged or no safetensors file"):
        load_checkpoint(path)


def test_a_truncated_checkpoint_is_refused(trained_run, tmp_path):
    content = (trained_run / "best.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path / "model.safetensors")


def test_pickles_are_never_opened(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="pickles can run code"):
        load_checkpoint(path)


def test_a_missing_checkpoint_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "model.safetensors")
