"""``agegen new-plugin``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agegen.cli.app import app, make_output_console


@app.command(name="new-plugin")
def new_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What `agegen train --model NAME` will call it.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The folder. Default: agegen-NAME.")] = None,
) -> None:
    """Write the package of a backbone of your own: it installs, trains and passes its contract test.

    Example: agegen new-plugin mine
    """
    from agegen.new_plugin.new_plugin import NewPluginConfig, write_plugin

    written = write_plugin(NewPluginConfig(name, out))
    output = make_output_console()
    for path in written:
        output.print(str(path), soft_wrap=True)
    output.print(f'next: pip install -e "{written[0].parent}[test]", pytest {written[0].parent}', soft_wrap=True)
