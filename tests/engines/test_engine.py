"""ONNX files that agegen did not export, or that have changed since, are rejected."""

import numpy as np
import onnx
import pytest
from foreign import make_foreign_model

from agegen.engines.engine import CHECKED_KEY, load_onnx
from agegen.errors import CheckpointError
from agegen.model.weights import find_weights

BUNDLED = find_weights("compact").with_suffix(".onnx")


def read_metadata(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_foreign_and_damaged_files_are_rejected(trained_run, tmp_path):
    path = tmp_path / "model.onnx"
    metadata = {"agegen": read_metadata(trained_run / "best.onnx")["agegen"]}
    cases = {
        "no metadata": (make_foreign_model(), "was not written by agegen"),
        "NaN": (make_foreign_model(float("nan"), metadata=metadata), "invalid outputs"),
        "external data": (make_foreign_model(external=True, metadata=metadata), "external data"),
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
    del model.metadata_props[1:]  # the checksum would not be right
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(CheckpointError, match="cannot run"):
        load_onnx(tmp_path / "other.onnx")


def test_errors_of_a_running_model_are_not_logged(tmp_path, capfd):
    """A tensor of 40 TB, named with a control character."""
    model = onnx.load(BUNDLED)
    kept = [entry for entry in model.metadata_props if entry.key == "agegen"]
    model.ClearField("metadata_props")
    model.metadata_props.extend(kept)
    size = onnx.numpy_helper.from_array(np.array([100_000, 100_000, 1000]), "size")
    model.graph.initializer.append(size)
    one = onnx.numpy_helper.from_array(np.array([1], np.float32))
    fill = onnx.helper.make_node("ConstantOfShape", ["size"], ["large"], "\x1b[31mlarge", value=one)
    total = onnx.helper.make_node("ReduceSum", ["large"], ["total"], keepdims=0)
    model.graph.node.extend([fill, total])
    model.graph.output.append(onnx.helper.make_tensor_value_info("total", onnx.TensorProto.FLOAT, []))
    onnx.save(model, tmp_path / "model.onnx")
    # Older releases of onnxruntime allocate it when they load the file.
    with pytest.raises(CheckpointError, match=r"cannot run|damaged"):
        load_onnx(tmp_path / "model.onnx")
    assert capfd.readouterr().err == ""


def move_to_file(tensor, name, folder):
    """Move the values of a tensor into a file, which the tensor then names."""
    (folder / name).write_bytes(tensor.raw_data)
    length = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", name), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


@pytest.mark.parametrize("place", ["initializer", "constant", "subgraph"])
def test_values_in_other_files_are_refused(tmp_path, place):
    """onnxruntime would read them from the working directory, in which the test runs."""
    model = onnx.load(BUNDLED)
    model.ClearField("metadata_props")
    model.metadata_props.extend(entry for entry in onnx.load(BUNDLED).metadata_props if entry.key == "agegen")
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    if place == "initializer":
        move_to_file(largest, "secret.bin", tmp_path)
    else:
        node = onnx.helper.make_node("Constant", [], [largest.name], value=largest)
        if place == "subgraph":
            output = onnx.helper.make_tensor_value_info(largest.name, largest.data_type, largest.dims)
            graph = onnx.helper.make_graph([node], "branch", [], [output])
            always = onnx.helper.make_node(
                "Constant", [], ["always"], value=onnx.numpy_helper.from_array(np.array(True))
            )
            node = onnx.helper.make_node("If", ["always"], [largest.name], then_branch=graph, else_branch=graph)
            for branch in node.attribute:
                move_to_file(branch.g.node[0].attribute[0].t, f"{branch.name}.bin", tmp_path)
            model.graph.node.insert(0, always)
        else:
            move_to_file(node.attribute[0].t, "secret.bin", tmp_path)
        model.graph.node.insert(1 if place == "subgraph" else 0, node)
        model.graph.initializer.remove(largest)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="external data"):
        load_onnx(tmp_path / "model.onnx")


def test_a_tensor_may_be_called_location(tmp_path):
    model = onnx.load(BUNDLED)
    model.graph.doc_string = "location"
    del model.metadata_props[1:]  # the checksum would not be right
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert load_onnx(tmp_path / "model.onnx")[0].model == "compact"


def test_every_flipped_bit_is_noticed(tmp_path):
    content = BUNDLED.read_bytes()
    places = [*np.random.default_rng(0).integers(0, len(content), 40), *range(len(content) - 83, len(content))]
    for place in map(int, places):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "model.onnx").write_bytes(damaged)
        with pytest.raises(CheckpointError) as caught:
            load_onnx(tmp_path / "model.onnx")
        assert str(caught.value).isprintable()


def test_files_of_older_versions_have_no_checksum_and_load(tmp_path):
    model = onnx.load(BUNDLED)
    older = [entry for entry in model.metadata_props if entry.key not in (CHECKED_KEY, "agegen_sha256")]
    del model.metadata_props[:]
    model.metadata_props.extend(older)
    onnx.save(model, tmp_path / "model.onnx")
    info, engine = load_onnx(tmp_path / "model.onnx", BUNDLED.with_suffix(".safetensors"))
    crops = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3)).astype(np.uint8)
    assert np.array_equal(engine.run(crops).age, load_onnx(BUNDLED)[1].run(crops).age)
    assert info == load_onnx(BUNDLED)[0]
