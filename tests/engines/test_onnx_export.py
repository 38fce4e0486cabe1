"""The outputs of exported ONNX files match those of torch, and export errors are one line."""

import json

import numpy as np
import pytest

from agegen import Estimator
from agegen.engines.engine import load_onnx
from agegen.engines.onnx_export import export_onnx
from agegen.engines.torch_engine import load_torch
from agegen.errors import AgegenError, CheckpointError
from agegen.model.checkpoint import describe_model, save_checkpoint
from agegen.model.metadata import read_info
from agegen.model.network import AgeGenderModel
from agegen.model.weights import find_weights, list_weights
from agegen.plugins import list_plugins, load_backbone

BUNDLED = [(plugin.name, weights.name) for plugin in list_plugins() for weights in list_weights(plugin)]


def draw_crops(count, size):
    coarse = np.random.default_rng(count).integers(0, 256, (count, 6, 6, 3)).astype(np.uint8)
    return coarse.repeat(size // 6, axis=1).repeat(size // 6, axis=2)


def check_parity(checkpoint, exported, crops):
    engines = load_torch(checkpoint, "cpu", "fp32")[1], load_onnx(exported, checkpoint)[1]
    expected, found = (engine.run(crops) for engine in engines)
    assert [values.shape for values in found[:3]] == [(len(crops),)] * 3
    assert found.distribution is None
    expected, found = (engine.run(crops, distribution=True) for engine in engines)
    assert found.distribution.shape == (len(crops), 117)
    assert np.abs(found.distribution - expected.distribution).max() < 0.01
    assert np.abs(found.age - expected.age).max() < 0.05
    assert np.abs(found.spread - expected.spread).max() < 0.05
    assert np.abs(found.p_female - expected.p_female).max() < 0.005


@pytest.mark.parametrize("count", [1, 3, 64])
def test_the_onnx_file_of_a_run_matches_torch(trained_run, count):
    check_parity(trained_run / "best.safetensors", trained_run / "best.onnx", draw_crops(count, 96))
    assert load_onnx(trained_run / "best.onnx")[0] == read_info(trained_run / "best.safetensors")


@pytest.mark.slow
@pytest.mark.usefixtures("random_vgg16")
def test_the_file_includes_a_frozen_backbone(tmp_path):
    import torch

    plugin, backbone = load_backbone("vgg16")
    model = AgeGenderModel(backbone(pretrained=False))
    torch.nn.init.uniform_(model.heads.norm.running_var, 0.5, 2.0)
    save_checkpoint(tmp_path / "heads.safetensors", model, describe_model(plugin, model, {}))
    export_onnx(tmp_path / "heads.safetensors", tmp_path / "whole.onnx")
    assert (tmp_path / "whole.onnx").stat().st_size > 40e6
    check_parity(tmp_path / "heads.safetensors", tmp_path / "whole.onnx", draw_crops(2, 96))


@pytest.mark.parametrize(("name", "which"), BUNDLED)
def test_bundled_onnx_files_match_the_bundled_weights(name, which, utkface):
    """Uses real faces, whose outputs are distributed differently from those of drawn ones."""
    from agegen.data.images import decode_image, resize_image

    weights = find_weights(name, which)
    exported = weights.with_suffix(".onnx")
    if not exported.exists():
        pytest.skip(f"{name} has no ONNX file")
    crops = [decode_image(path.read_bytes()) for path in sorted(utkface.glob("*.jpg"))[::200]]
    check_parity(weights, exported, np.stack([resize_image(crop, 96) for crop in crops]))
    assert b"/site-packages/" not in exported.read_bytes()


def test_both_engines_give_the_same_rows(trained_run, portrait):
    rows = {}
    for engine in ("auto", "onnx", "torch"):
        estimator = Estimator.load(run=trained_run, engine=engine, device="cpu", precision="auto")
        rows[engine] = (estimator.model.engine.name, estimator.predict(portrait)[0])
    assert [name for name, _ in rows.values()] == ["onnx", "onnx", "torch"]
    assert rows["auto"] == rows["onnx"]
    assert rows["onnx"][1].age == pytest.approx(rows["torch"][1].age, abs=0.15)
    assert rows["onnx"][1].box == rows["torch"][1].box


def test_an_exported_file_needs_no_run(agegen, trained_run, tmp_path, portrait):
    done = agegen("export", trained_run, "--onnx", tmp_path / "alone.onnx")
    assert f"{tmp_path / 'alone.onnx'} (2 MB)" in done.stdout
    done = agegen("predict", portrait, "--run", tmp_path / "alone.onnx", "--json", "-")
    assert json.loads(done.stdout)[0]["status"] == "ok"
    done = agegen("predict", portrait, "--run", tmp_path / "alone.onnx", "--engine", "torch")
    assert (done.exit_code, "requires --engine onnx" in done.stderr) == (1, True)


def test_export_options_are_checked(agegen, trained_run, tmp_path):
    assert "Give --weights" in agegen("export", trained_run).stderr
    assert "must end in .onnx" in agegen("export", trained_run, "--onnx", tmp_path / "a.bin").stderr
    agegen("export", trained_run, "--onnx", tmp_path / "w.onnx", "--weights", tmp_path / "w.safetensors")
    load_onnx(tmp_path / "w.onnx", tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="was not exported from"):
        load_onnx(tmp_path / "w.onnx", trained_run / "best.safetensors")


def test_an_unsupported_backbone_is_an_error(trained_run, tmp_path, monkeypatch):
    import agegen_scratch

    plain = agegen_scratch.ScratchBackbone.forward

    def branch(self, images):
        return plain(self, images) if images.mean().item() > 0 else plain(self, -images)

    monkeypatch.setattr(agegen_scratch.ScratchBackbone, "forward", branch)
    with pytest.raises(AgegenError, match="cannot export backbone 'scratch' to ONNX: ") as caught:
        export_onnx(trained_run / "best.safetensors", tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.onnx").exists()


def test_an_export_with_other_outputs_is_not_written(trained_run, tmp_path, monkeypatch):
    """The exporter may silently trace another computation than the backbone performs."""
    import agegen_scratch
    import torch

    plain = agegen_scratch.ScratchBackbone.forward
    monkeypatch.setattr(
        agegen_scratch.ScratchBackbone,
        "forward",
        lambda self, images: plain(self, -images if torch.compiler.is_exporting() else images),
    )
    with pytest.raises(AgegenError, match="the outputs differ from those of torch"):
        export_onnx(trained_run / "best.safetensors", tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()
