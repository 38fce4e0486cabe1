"""Checkpoints: metadata, and one clear line for every kind of damage."""

import json
import os
import shutil
import struct
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from serving import serve_hub

from agegen.engines.engine import load_onnx
from agegen.errors import CheckpointError
from agegen.model.checkpoint import load_checkpoint, read_used_faces
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
    refuse("has the type torch.int64", tensors={**tensors, first: tensors[first].long()})
    refuse("NaN or infinite values", tensors={**tensors, first: (tensors[first] * 1e9).to(torch.float8_e5m2)})
    refuse("unexpected tensors, the first is a\\?b", tensors={**tensors, "a\x1bb": torch.zeros(1)})
    refuse("takes another input", metadata=change(metadata, input_spec={"size": 8, "mean": [0] * 3, "std": [1] * 3}))


def edit(metadata, path, value):
    """Return the metadata with one entry replaced; ``path`` is its name: ``heads.hidden``."""
    content = json.loads(metadata["agegen"])
    inner, *rest = reversed(path.split("."))
    place = content
    for name in reversed(rest):
        place = place[name]
    place[inner] = value
    return content


EDITS = [
    ("model", 5),
    ("model", ["scratch"]),
    ("model", "x" * 500),
    ("model", "timm:hf-hub:evil/evil"),
    ("model", "timm:HF-HUB:evil/evil"),
    ("model", "timm:hf_hub:evil"),
    ("model", "timm:local-dir:/etc"),
    ("model", "timm:../../etc"),
    ("model", "timm:https://evil.example/x"),
    ("distribution", "\x1b]0;owned\x07\nagegen"),
    ("version", None),
    ("heads", []),
    ("heads.hidden", 10**12),
    ("heads.hidden", -1),
    ("heads.hidden", True),
    ("heads.hidden", "64"),
    ("heads.age_hidden", 2.5),
    ("heads.dropout", 2),
    ("heads.dropout", float("nan")),
    ("heads.unknown", 1),
    ("input_spec", None),
    ("input_spec.size", 10**9),
    ("input_spec.mean", [0, 0]),
    ("input_spec.std", [0, 0, 0]),
    ("base", "x"),
    ("base", {"identity": 5, "fingerprint": ""}),
    ("training", []),
    ("training.seed", "x"),
    ("training.baseline", {"age": "x", "female": False}),
    ("training.trims", {"x": {"left": 0, "top": 0, "side": 1e300}}),
    ("training.deep", [[[[[[[[[[]]]]]]]]]]),
    ("crop", [1]),
    ("training.trims", {"x": {"left": 0, "top": 0, "side": 1, "bottom": 0}}),
    ("crop.landmarks", [[1e300, 0]] * 5),
    ("crop.landmarks", [[0, 0]] * 4),
    ("calibration", 3),
    ("calibration.faces", "many"),
    ("calibration.scales", [[1, 2, 3]]),
    ("calibration.scales", [[1, 2]] * 1001),
    ("calibration.interval_scale", float("inf")),
    ("build", {"image_size": 10**9}),
    ("build", {"pretrained": True}),
    ("build", {"width": 1e12}),
    ("format", "\x1b" * 1000),
]


@pytest.mark.parametrize(("name", "value"), EDITS)
def test_edited_metadata_is_one_line_in_both_formats(trained_run, parts, tmp_path, name, value):
    import onnx

    content = json.dumps(edit(parts[0], name, value))
    save_file(parts[1], tmp_path / "model.safetensors", {"agegen": content})
    model = onnx.load(trained_run / "best.onnx")
    next(entry for entry in model.metadata_props if entry.key == "agegen").value = content
    del model.metadata_props[1:]  # the checksum would not be right
    onnx.save(model, tmp_path / "model.onnx")
    for load in (load_checkpoint, load_onnx):
        path = tmp_path / ("model.safetensors" if load is load_checkpoint else "model.onnx")
        with pytest.raises(CheckpointError, match=f"metadata: '{name}|has the format ") as caught:
            load(path)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 700


@pytest.mark.parametrize("content", ["[" * 400_000, '{"a":' * 2000, "{", "3", "[]", '{"a": 1' + "0" * 5000 + "}"])
def test_metadata_that_is_no_object_is_one_line(parts, tmp_path, content):
    save_file(parts[1], tmp_path / "model.safetensors", {"agegen": content})
    with pytest.raises(CheckpointError, match=r"invalid metadata|lacks the metadata") as caught:
        load_checkpoint(tmp_path / "model.safetensors")
    assert str(caught.value).isprintable()


def test_a_width_that_does_not_fit_the_tensors_allocates_nothing(parts, tmp_path):
    """65,536 × 9,216 weights would take 2.4 GB for each head."""
    import resource

    save_file(parts[1], tmp_path / "model.safetensors", {"agegen": json.dumps(edit(parts[0], "heads.hidden", 65_536))})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=r"has the shape .* instead of \(65536, 9216\)"):
        load_checkpoint(tmp_path / "model.safetensors")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


def test_many_tensors_are_refused_before_they_are_read(parts, tmp_path):
    names = {f"t{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(150_000)}
    header = json.dumps({**names, "__metadata__": parts[0]}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    for read in (read_info, read_used_faces, load_checkpoint):
        with pytest.raises(CheckpointError, match="is not a checkpoint: it has more than 8 MB of header"):
            read(tmp_path / "model.safetensors")


def test_fingerprints_of_another_type_are_refused(parts, tmp_path):
    for wrong in (torch.zeros(3, dtype=torch.float16), torch.zeros(2, 2, dtype=torch.int64)):
        save_file({**parts[1], "used_faces.train": wrong}, tmp_path / "model.safetensors", parts[0])
        with pytest.raises(CheckpointError, match="not lists of 64-bit integers"):
            read_used_faces(tmp_path / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["timm:hf-hub:evil/evil", "timm:local-dir:folder"])
def test_no_file_makes_agegen_ask_the_hub_or_read_a_folder(trained_run, parts, tmp_path, portrait, model):
    import onnx

    content = json.dumps(edit(parts[0], "model", model))
    save_file(parts[1], tmp_path / "m.safetensors", {"agegen": content})
    exported = onnx.load(trained_run / "best.onnx")
    next(entry for entry in exported.metadata_props if entry.key == "agegen").value = content
    del exported.metadata_props[1:]
    onnx.save(exported, tmp_path / "m.onnx")
    record = json.loads((trained_run / "run.json").read_text())
    record["model"] = record["options"]["model"] = model
    shutil.copytree(trained_run, tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(json.dumps({**record, "finished": None}))
    # A network that timm could build, with pickled weights.
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text('{"architecture": "lcnet_035"}')
    commands = [
        ["predict", portrait, "--run", "m.safetensors"],
        ["predict", portrait, "--run", "m.onnx"],
        ["predict", portrait, "--run", "hf://me/mine"],
        ["train", "--resume", "run"],
        ["train", "--model", model, "--data", "demo"],
    ]
    remote = {"/me/mine/resolve/main/model.safetensors": (tmp_path / "m.safetensors").read_bytes()}
    with serve_hub(remote) as (address, asked):
        env = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1"}
        env.pop("HF_HUB_OFFLINE", None)
        for command in commands:
            words = [sys.executable, "-m", "agegen", *map(str, command)]
            done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 1, command
            (line,) = done.stderr.splitlines()
            assert line.startswith("error: ") and "path or an address" in line
        assert not [path for path in asked if "evil" in path]


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
