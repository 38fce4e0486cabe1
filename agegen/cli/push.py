"""``agegen push``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agegen.cli.app import app, make_notice_console, make_output_console, show_work


@app.command()
def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository; made where it isn't there.")],
    private: Annotated[bool, typer.Option("--private", help="A new repository is yours alone to see.")] = False,
) -> None:
    """Upload a run to the Hugging Face Hub: weights, ONNX, configuration, and the card with its metadata.

    Others load it by its name: --run hf://OWNER/NAME, with @REVISION for one commit.

    Example: agegen push runs/compact-20260101-120000 me/my-faces
    """
    notices = make_notice_console()
    with show_work(notices, "uploading"):
        from agegen.export.push import PushConfig, push_run

        pushed = push_run(PushConfig(run, repository, private))
    output = make_output_console()
    output.print(pushed.url, soft_wrap=True)
    output.print(f"agegen predict face.jpg --run {pushed.name}", soft_wrap=True)
