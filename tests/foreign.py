"""ONNX files that agegen did not write, for tests that they are rejected."""

from onnx import TensorProto, helper

from agegen.engines.engine import CropOutputs


def make_foreign_model(value=1.0, external=False, metadata=None):
    """Return a model with agegen's output names, all constant at ``value``; ``external`` stores it outside the file."""
    constant = helper.make_tensor("value", TensorProto.FLOAT, [1], [value])
    if external:
        constant.ClearField("float_data")
        constant.data_location = TensorProto.EXTERNAL
        for key, entry in (("location", "/etc/hostname"), ("offset", "0"), ("length", "4")):
            item = constant.external_data.add()
            item.key, item.value = key, entry
    nodes = [helper.make_node("Identity", ["value"], [name]) for name in CropOutputs._fields]
    crops = helper.make_tensor_value_info("crops", TensorProto.UINT8, ["n", 96, 96, 3])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in CropOutputs._fields]
    graph = helper.make_graph(nodes, "foreign", [crops], outputs, [constant])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    for key, text in (metadata or {}).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, text
    return model
