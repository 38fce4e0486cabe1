"""``agegen download``."""

from __future__ import annotations

from typing import Annotated

import typer

from agegen.cli.app import Offline, app, make_notice_console, make_output_console, obey_offline, show_work


@app.command()
def download(
    everything: Annotated[
        bool, typer.Option("--all", help="Also what other detectors want, and backbones to be trained.")
    ] = False,
    offline: Offline = False,
) -> None:
    """Fetch what predicting likes to have: the detector yunet; into the Hugging Face cache (HF_HOME).

    Files are checked against their SHA-256. With --offline it says what is at hand. Exit code 1 where something isn't.

    Example: agegen download --all
    """
    obey_offline(offline)
    notices = make_notice_console()
    with show_work(notices):
        from agegen.export.download import download_all
    output, missing = make_output_console(), False
    for thing in download_all(everything):
        if thing.problem is None:
            output.print(f"{thing.name}: at hand", soft_wrap=True)
        else:
            missing = True
            notices.print(f"{thing.name}: {thing.problem}", style="red", soft_wrap=True)
    if missing:
        raise typer.Exit(1)
