"""What ``agegen models`` tells of each registered backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agegen.errors import CheckpointError, PluginError
from agegen.registry import Plugin, build_backbone, list_plugins, load_plugin
from agegen.weights import WEIGHTS_FILE, locate_file


@dataclass(frozen=True)
class ModelDescription:
    """A backbone with its two heads: parameters, input size in pixels; or the problem with it.

    ``weights`` is the file that ships for it, ``weights_terms`` the licence of these weights.
    """

    name: str
    distribution: str
    version: str
    parameters: int | None = None
    trainable: int | None = None
    input_size: int | None = None
    frozen: bool | None = None
    weights: str | None = None
    weights_bytes: int | None = None
    weights_terms: str | None = None
    problem: str | None = None


def describe_models() -> list[ModelDescription]:
    """Describe every registered backbone; one that can't be used is described by its problem."""
    return [describe_plugin(plugin) for plugin in list_plugins()]


def describe_plugin(plugin: Plugin) -> ModelDescription:
    """Describe one backbone, counting its parameters on the meta device: nothing is loaded or computed."""
    import torch

    from agegen.model import AgeGenderModel, count_parameters

    identity = (plugin.name, plugin.distribution, plugin.version)
    if plugin.taken_by:
        return ModelDescription(*identity, problem=f"the name is taken by {plugin.taken_by}")
    try:
        backbone_class = load_plugin(plugin)
        with torch.device("meta"):
            total, trainable = count_parameters(
                AgeGenderModel(build_backbone(plugin, backbone_class, pretrained=False))
            )
    except PluginError as error:
        return ModelDescription(*identity, problem=str(error))
    size, frozen = backbone_class.input_spec.size, backbone_class.frozen
    return ModelDescription(*identity, total, trainable, size, frozen, **describe_weights(plugin))


def describe_weights(plugin: Plugin) -> dict[str, Any]:
    """Return the fields of a description that tell of the weights that ship; none where none do."""
    from agegen.checkpoints import read_info

    path = locate_file(plugin, WEIGHTS_FILE)
    if path is None:
        return {}
    try:
        terms = str(read_info(path).training.get("terms") or "")
    except CheckpointError as error:
        terms = str(error)
    return {"weights": str(path), "weights_bytes": path.stat().st_size, "weights_terms": terms}
