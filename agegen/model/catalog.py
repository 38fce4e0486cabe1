"""What ``agegen models`` tells of each registered backbone."""

from __future__ import annotations

import json
import platform
import sysconfig
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agegen.errors import AgegenError, CheckpointError, PluginError
from agegen.files import write_json
from agegen.model.plugins import (
    Plugin,
    build_backbone,
    find_module,
    list_plugins,
    load_plugin,
    locate_file,
)
from agegen.model.weights import WEIGHTS_LIST, list_weights


@dataclass(frozen=True)
class ModelDescription:
    """A backbone with its two heads: parameters, input size in pixels; or the problem with it.

    ``weights`` is the file that ships for it, ``weights_terms`` the licence of these weights. ``argument`` is what it
    takes behind its name; all else then depends on that. ``shipped`` lists all weights: name, source, bytes, terms.
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
    argument: str = ""
    shipped: list[dict[str, Any]] = field(default_factory=list)


def describe_models(memory: Path | None = None) -> list[ModelDescription]:
    """Describe every registered backbone; one that can't be used is described by its problem.

    Args:
        memory: a JSON file of descriptions: one that stands there, of a backbone whose files have not
            changed since, spares importing torch and the plugin; new ones are added. None remembers nothing.
    """
    known = _read_memory(memory)
    described = {_identify(plugin): plugin for plugin in list_plugins()}
    fresh = {key: _recall(known.get(key)) or describe_plugin(plugin) for key, plugin in described.items()}
    sound = {key: asdict(model) for key, model in fresh.items() if model.problem is None}
    if memory is not None and sound != known:
        # A cache folder that can't be written costs time only.
        with suppress(AgegenError):
            write_json(memory, sound)
    return list(fresh.values())


def describe_plugin(plugin: Plugin) -> ModelDescription:
    """Describe one backbone, counting its parameters on the meta device: nothing is loaded or computed."""
    identity = (plugin.name, plugin.distribution, plugin.version)
    if plugin.taken_by:
        return ModelDescription(*identity, problem=f"the name is taken by {plugin.taken_by}")
    import torch

    from agegen.model.network import AgeGenderModel, count_parameters

    try:
        backbone_class = load_plugin(plugin)
        if backbone_class.argument_name:
            return ModelDescription(*identity, argument=backbone_class.argument_name)
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
    shipped = []
    try:
        listed = list_weights(plugin)
    except CheckpointError as error:
        return {"weights_terms": str(error)}
    for weights in listed:
        path = None if weights.remote else locate_file(plugin, weights.source)
        size = None if path is None else path.stat().st_size
        shipped.append({"name": weights.name, "source": weights.source, "bytes": size, "terms": _read_terms(path)})
    path = locate_file(plugin, listed[0].source) if listed and not listed[0].remote else None
    if path is None:
        return {"shipped": shipped}
    first = shipped[0]
    return {
        "weights": str(path),
        "weights_bytes": first["bytes"],
        "weights_terms": first["terms"],
        "shipped": shipped,
    }


def _read_terms(path: Path | None) -> str:
    """Return the licence that a file of weights names, "" where it isn't at hand or names none."""
    from agegen.model.metadata import read_info

    if path is None:
        return ""
    try:
        return str(read_info(path).training.get("terms") or "")
    except CheckpointError as error:
        return str(error)


def _identify(plugin: Plugin) -> str:
    """Return what a description depends on: the plugin, its files, and whatever else is installed."""
    spec = find_module(plugin)
    folders = (spec.submodule_search_locations or ()) if spec else ()
    files = [
        *(path for folder in folders for path in sorted(Path(folder).rglob("*.py"))),
        *(path for folder in folders for path in sorted(Path(folder).glob("*.safetensors"))),
        locate_file(plugin, WEIGHTS_LIST),
        Path(spec.origin) if spec and spec.origin else None,
        # Installing or removing any package touches these folders.
        Path(sysconfig.get_path("purelib")),
        Path(sysconfig.get_path("platlib")),
    ]
    marks = [f"{file}:{file.stat().st_mtime_ns}" for file in files if file is not None and file.exists()]
    claim = (plugin.name, plugin.source, plugin.entry_point.value, str(plugin.taken_by), platform.python_version())
    return "|".join([*claim, *marks])


def _read_memory(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _recall(content: Any) -> ModelDescription | None:
    try:
        return ModelDescription(**content)
    except TypeError:
        return None
