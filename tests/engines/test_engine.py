"""ONNX files that agegen did not export are rejected."""

import onnx
import pytest
from foreign import make_foreign_model

from agegen.engines.engine import load_onnx
from agegen.errors import CheckpointError


def read_metadata(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_foreign_and_damaged_files_are_rejected(trained_run, tmp_path):
    path = tmp_path / "model.onnx"
    metadata = read_metadata(trained_run / "best.onnx")
    cases = {
        "no metadata": (make_foreign_model(), "was not written by agegen"),
        "NaN": (make_foreign_model(float("nan"), metadata=metadata), "invalid outputs"),
        "external data": (make_foreign_model(external=True, metadata=metadata), "damaged or not an ONNX file"),
    }
    for model, message in cases.values():
        path.write_bytes(model.SerializeToString())
        with pytest.raises(CheckpointError, match=message):
            load_onnx(path)
    path.write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match="damaged or not an ONNX file"):
        load_onnx(path)
    with pytest.raises(CheckpointError, match="cannot read"):
        load_onnx(tmp_path / "gone.onnx")


def test_a_wrong_input_size_is_rejected(trained_run, tmp_path):
    model = onnx.load(trained_run / "best.onnx")
    entry = next(entry for entry in model.metadata_props if entry.key == "agegen")
    entry.value = entry.value.replace('"size": 96', '"size": 64')
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(CheckpointError, match="cannot run"):
        load_onnx(tmp_path / "other.onnx")
