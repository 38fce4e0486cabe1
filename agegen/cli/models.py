"""``agegen models``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from agegen.cli.app import (
    TRAIN,
    add_command,
    make_notice_console,
    make_output_console,
    show_work,
    write_output,
)
from agegen.errors import CheckpointError, PluginError
from agegen.options import JsonOption, WeightsOption
from agegen.plugins import Plugin, build_backbone, format_cause, list_plugins, load_plugin, locate_file
from agegen.render.tables import PlainTable, format_size, render_table


@dataclass(frozen=True)
class ModelDescription:
    """A backbone with its two heads: parameters, input size in pixels; or the problem with it.

    ``weights`` is the file of its bundled weights, ``weights_terms`` their licence. ``argument`` is what follows the
    name (``timm:NAME``), on which everything else depends. ``shipped`` lists all weights: name, source, bytes, terms.
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


@add_command("models", "agegen models --card scratch", TRAIN)
def models(
    json_out: JsonOption = None,
    card: Annotated[
        str | None, typer.Option(metavar="NAME", help="Show the model card of this model's bundled weights.")
    ] = None,
    weights: WeightsOption = None,
) -> None:
    """List backbones, their bundled weights and licences."""
    if card is not None:
        from agegen.model.weights import DEFAULT_WEIGHTS, read_card

        write_output("-", read_card(card, weights or DEFAULT_WEIGHTS))
        return
    from agegen.files import format_json

    notices = make_notice_console()
    with show_work(notices):
        described = describe_models()
    if json_out:
        write_output(json_out, format_json([asdict(model) for model in described]))
    if json_out != "-":
        make_output_console().print(render_table(make_models_table(described)))


def describe_models() -> list[ModelDescription]:
    """Describe every registered backbone; one that cannot be used is described by its problem."""
    return [describe_plugin(plugin) for plugin in list_plugins()]


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
    except (Exception, SystemExit) as error:  # custom heads may raise anything
        return ModelDescription(*identity, problem=f"cannot be built: {format_cause(error)}")
    size, frozen = backbone_class.input_spec.size, backbone_class.frozen
    return ModelDescription(*identity, total, trainable, size, frozen, **describe_weights(plugin))


def describe_weights(plugin: Plugin) -> dict[str, Any]:
    """Return the fields of a description that concern bundled weights; empty if there are none."""
    from agegen.model.weights import list_weights

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
    """Return the licence in a weights file; "" if the file is not available or names none."""
    from agegen.model.metadata import read_info

    if path is None:
        return ""
    try:
        return str(read_info(path).training.get("terms") or "")
    except CheckpointError as error:
        return str(error)


def make_models_table(models: list[ModelDescription]) -> PlainTable:
    """Return one row per registered backbone, with its bundled weights and their licence."""
    columns = ["model", "distribution", "parameters", "trained", "input", "frozen", "bundled weights, licence"]
    broken = frozenset(index for index, model in enumerate(models) if model.problem)
    caption = "agegen models --card NAME shows a model card"
    return PlainTable("", columns, [_list_cells(model) for model in models], left=2, caption=caption, alarms=broken)


def _describe_weights(weights: dict[str, Any]) -> str:
    size = weights["source"] if weights["bytes"] is None else format_size(weights["bytes"])
    return "; ".join(part for part in (f"{weights['name']}: {size}", weights["terms"]) if part)


def _list_cells(model: ModelDescription) -> list[str]:
    source = f"{model.distribution} {model.version}"
    if model.problem:
        return [model.name, source, "", "", "", "", model.problem]
    if model.argument:
        return [f"{model.name}:{model.argument}", source, "", "", "", "", "none; depends on the argument"]
    size = f"{model.input_size}×{model.input_size}"
    counts = f"{model.parameters or 0:,}", f"{model.trainable or 0:,}"
    weights = "\n".join(_describe_weights(one) for one in model.shipped) or model.weights_terms or "none"
    return [model.name, source, *counts, size, "yes" if model.frozen else "no", weights]
