"""``agegen explain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agegen.cli.app import ShippedModel, Weights, app, make_notice_console, make_output_console, show_work


@app.command()
def explain(
    picture: Annotated[str, typer.Argument(metavar="PICTURE", help="A photograph with a face.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The picture to write.")] = Path("map.png"),
    model: ShippedModel = None,
    weights: Weights = None,
    run: Annotated[Path | None, typer.Option(help="A run folder or checkpoint of your own instead.")] = None,
    detector: Annotated[
        str, typer.Option(metavar="auto|mtcnn|yunet|none", help="What finds the face; none takes an aligned crop.")
    ] = "auto",
    face: Annotated[int, typer.Option(metavar="N", help="Which face, from 1, from left to right.")] = 1,
    method: Annotated[
        str,
        typer.Option(
            metavar="occlusion|grad-cam",
            help="Cover each part in turn, for any model; or follow gradients to the last convolution.",
        ),
    ] = "occlusion",
) -> None:
    """Draw what the age and gender estimated of a face rest on.

    Example: agegen explain face.jpg -o map.png
    """
    notices = make_notice_console()
    with show_work(notices):
        from agegen.explain import ExplainConfig, explain_face

    with show_work(notices, "looking"):
        found = explain_face(ExplainConfig(picture, out, model, weights, run, detector, face, method)).face
    ages = f"{found.age:.1f} years, {found.age_low:.0f}–{found.age_high:.0f}"
    output = make_output_console()
    output.print(f"{ages}; {found.gender}, P(female) {found.p_female:.2f}")
    output.print(str(out), soft_wrap=True)
