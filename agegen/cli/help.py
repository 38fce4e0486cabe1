"""``agegen help``: pages on what one command's ``--help`` has no room for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agegen.cli.app import app, make_output_console
from agegen.errors import AgegenError

_FOLDER = Path(__file__).parent / "topics"


@app.command(name="help")
def show_topic(
    topic: Annotated[str | None, typer.Argument(metavar="TOPIC", help="A page; without it, the list of them.")] = None,
) -> None:
    """Show a page on a topic: run-folder, json, onnx, crops, data-check, plugins, scale, serve, studies or method.

    Example: agegen help run-folder
    """
    pages = {path.stem: path for path in sorted(_FOLDER.glob("*.md"))}
    if topic is None:
        lines = [f"{name:<12} {path.read_text(encoding='utf-8').splitlines()[0][2:]}" for name, path in pages.items()]
        make_output_console().print("\n".join(["agegen help TOPIC; the topics:", *lines]))
        return
    if topic not in pages:
        raise AgegenError(f"there is no topic '{topic}'; there are {', '.join(pages)}")
    typer.echo(pages[topic].read_text(encoding="utf-8"), nl=False)
