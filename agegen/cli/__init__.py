"""The command line: one file per command, which parses its options and shows what the library returns."""

from agegen.cli import (
    cache,
    calibrate,
    check,
    compare,
    convert,
    crop,
    download,
    evaluate,
    explain,
    export,
    models,
    new_plugin,
    predict,
    push,
    serve,
    split,
    topics,
    train,
)
from agegen.cli.app import app

__all__ = ["app", "main"]
# Each file adds its command to the app as it is imported.
_COMMANDS = (
    cache,
    calibrate,
    check,
    compare,
    convert,
    crop,
    download,
    evaluate,
    explain,
    export,
    models,
    new_plugin,
    predict,
    push,
    serve,
    split,
    topics,
    train,
)


def main() -> None:
    """Run the command line."""
    app(prog_name="agegen")
