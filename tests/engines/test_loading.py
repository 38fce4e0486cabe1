"""The choice of the engine for a checkpoint."""

import shutil

import pytest
from foreign import make_foreign_model

from agegen.engines.loading import load_engine
from agegen.engines.onnx_export import export_onnx
from agegen.errors import AgegenError, CheckpointError
from agegen.model.checkpoint import save_checkpoint


@pytest.mark.parametrize("fault", ["damaged", "foreign", "stale", "missing"])
def test_torch_is_used_if_the_onnx_file_is_unusable(trained_run, tmp_path, fault):
    checkpoint = shutil.copy(trained_run / "best.safetensors", tmp_path / "best.safetensors")
    content = (trained_run / "best.onnx").read_bytes()
    if fault == "damaged":
        (tmp_path / "best.onnx").write_bytes(content[: len(content) // 2])
    elif fault == "foreign":
        (tmp_path / "best.onnx").write_bytes(make_foreign_model().SerializeToString())
    elif fault == "stale":
        export_onnx(checkpoint, tmp_path / "best.onnx")
        from agegen.model.checkpoint import load_checkpoint

        info, model = load_checkpoint(checkpoint)
        save_checkpoint(checkpoint, model.half(), info)
    assert load_engine(checkpoint)[1].name == "torch"
    with pytest.raises(CheckpointError, match=r"best\.onnx"):
        load_engine(checkpoint, "onnx")


@pytest.mark.parametrize(("device", "precision"), [("cuda", "auto"), ("auto", "bf16")])
def test_the_onnx_engine_supports_only_cpu_and_float32(trained_run, device, precision):
    with pytest.raises(AgegenError, match="on the CPU in float32"):
        load_engine(trained_run / "best.safetensors", "onnx", device, precision)


def test_unknown_engines_are_rejected(trained_run):
    with pytest.raises(AgegenError, match=r"--engine: 'tensorrt'\. Choose auto, onnx, torch"):
        load_engine(trained_run / "best.safetensors", "tensorrt")


def test_bf16_uses_torch(trained_run):
    assert load_engine(trained_run / "best.safetensors", "auto", "cpu", "bf16")[1].name == "torch"
