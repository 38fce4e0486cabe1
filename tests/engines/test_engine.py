"""ONNX files from elsewhere."""

import onnx
import pytest
from foreign import make_foreign_model

from agegen.engines.engine import load_onnx
from agegen.errors import CheckpointError


def read_metadata(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_files_from_elsewhere_are_refused(trained_run, tmp_path):
    path = tmp_path / "model.onnx"
    metadata = read_metadata(trained_run / "best.onnx")
    cases = {
        "no metadata": (make_foreign_model(), "was not written by agegen"),
        "no numbers": (make_foreign_model(float("nan"), metadata=metadata), "no numbers"),
        "other files": (make_foreign_model(external=True, metadata=metadata), "damaged or no ONNX file"),
    }
    for model, message in cases.values():
        path.write_bytes(model.SerializeToString())
        with pytest.raises(CheckpointError, match=message):
            load_onnx(path)
    path.write_bytes(b"no model at all")
    with pytest.raises(CheckpointError, match="damaged or no ONNX file"):
        load_onnx(path)
    with pytest.raises(CheckpointError, match="can't read"):
        load_onnx(tmp_path / "gone.onnx")


def test_another_input_size_is_noticed(trained_run, tmp_path):
    model = onnx.load(trained_run / "best.onnx")
    entry = next(entry for entry in model.metadata_props if entry.key == "agegen")
    entry.value = entry.value.replace('"size": 96', '"size": 64')
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(CheckpointError, match="can't be run"):
        load_onnx(tmp_path / "other.onnx")
