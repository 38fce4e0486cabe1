"""The command line: one file per command, which parses its options and renders what the library returns."""

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
    help,
    models,
    new_plugin,
    predict,
    push,
    serve,
    split,
    train,
)
from agegen.cli.app import app

__all__ = ["app", "main"]
# Each file registers its command on import.
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
    help,
    models,
    new_plugin,
    predict,
    push,
    serve,
    split,
    train,
)


def main() -> None:
    """Run the command line."""
    app(prog_name="agegen")
