"""``agegen push``."""

from __future__ import annotations

from typing import Annotated

import typer

from agegen.cli.app import SHARE, add_command, make_notice_console, make_output_console, show_work
from agegen.options import FinishedRunArgument


@add_command("push", "agegen push runs/compact-20260101-120000 me/my-faces", SHARE)
def push(
    run: FinishedRunArgument,
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="Target repository; created if it does not exist.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Create the repository as private.")] = False,
) -> None:
    """Upload a run to the Hugging Face Hub: weights, ONNX and card.

    Others load it with --run hf://OWNER/NAME, or hf://OWNER/NAME@REVISION for one commit.
    """
    notices = make_notice_console()
    with show_work(notices, "uploading"):
        from agegen.export.push import push_run

        pushed = push_run(run, repository, private)
    output = make_output_console()
    output.print(pushed.url, soft_wrap=True)
    output.print(f"agegen predict face.jpg --run {pushed.name}", soft_wrap=True)
