"""``agegen download``."""

from __future__ import annotations

from typing import Annotated

import typer

from agegen.cli.app import (
    SHARE,
    add_command,
    make_notice_console,
    make_output_console,
    obey_offline,
    show_work,
)
from agegen.options import OfflineOption


@add_command("download", "agegen download --all", SHARE)
def download(
    everything: Annotated[
        bool, typer.Option("--all", help="Also the files of other detectors and of backbones for training.")
    ] = False,
    offline: OfflineOption = False,
) -> None:
    """Download the yunet face detector (recommended).

    Files go to the Hugging Face cache (HF_HOME) and are verified by SHA-256. With --offline, only check which files are
    available. Exit code 1 if one is missing.
    """
    obey_offline(offline)
    notices = make_notice_console()
    with show_work(notices):
        from agegen.export.download import download_all
    output, missing = make_output_console(), False
    for thing in download_all(everything):
        if thing.problem is None:
            output.print(f"{thing.name}: available", soft_wrap=True)
        else:
            missing = True
            notices.print(f"{thing.name}: {thing.problem}", style="red", soft_wrap=True)
    if missing:
        raise typer.Exit(1)
