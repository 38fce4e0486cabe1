"""``agegen models``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from agegen.cli.app import JsonOut, Weights, app, make_notice_console, make_output_console, show_work, write_output
from agegen.render.formats import format_size
from agegen.render.tables import PlainTable, render_table

if TYPE_CHECKING:
    from agegen.model.catalog import ModelDescription


@app.command()
def models(
    json_out: JsonOut = None,
    card: Annotated[
        str | None, typer.Option(metavar="NAME", help="Show the card of the weights that ship for this model.")
    ] = None,
    weights: Weights = None,
) -> None:
    """List the installed backbones, the weights that ship for them and their licence, or why one can't load.

    Example: agegen models --card scratch
    """
    from dataclasses import asdict

    if card is not None:
        from agegen.model.weights import DEFAULT_WEIGHTS, read_card

        write_output("-", read_card(card, weights or DEFAULT_WEIGHTS))
        return
    from agegen.batches.cache_folder import choose_cache_dir
    from agegen.files import format_json
    from agegen.model.catalog import describe_models

    notices = make_notice_console()
    with show_work(notices):
        described = describe_models(choose_cache_dir(None) / "models.json")
    if json_out:
        write_output(json_out, format_json([asdict(model) for model in described]))
    if json_out != "-":
        make_output_console().print(render_table(make_models_table(described)))


def make_models_table(models: list[ModelDescription]) -> PlainTable:
    """Return one row per registered backbone, with the weights that ship for it and their licence."""
    columns = ["model", "distribution", "parameters", "trained", "input", "frozen", "weights that ship, their licence"]
    broken = frozenset(index for index, model in enumerate(models) if model.problem)
    caption = "agegen models --card NAME shows the card of shipped weights"
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
