"""The command line: options in, library calls, results rendered. The only package that prints or exits."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from agegen.distributed import read_local_rank, read_rank
from agegen.errors import AgegenError, escape_controls
from agegen.options import OFFLINE_HELP
from agegen.render.progress import EscapingConsole

# The exit code that shells expect after Ctrl-C: 128 + SIGINT.
INTERRUPTED = 130
# Output contains file names and plugin errors: "[red]" and ":smile:" in them are not markup.
_LITERALLY: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}

# Panels of `agegen --help`, and the commands in them, most used first.
USE, TRAIN, DATA, SHARE, EXTEND = "Use", "Train", "Data", "Share", "Extend"
# What people try, and the option that exists; Typer itself suggests only similar spellings.
_SYNONYMS = {
    **dict.fromkeys(("--threshold", "--gender-threshold", "--min-probability"), "--min-confidence"),
    **dict.fromkeys(("--detection-threshold", "--det-thresh"), "--min-score"),
}
_ORDER = (
    *("predict", "serve", "explain"),
    *("train", "eval", "compare", "calibrate", "models"),
    *("data", "split", "cache"),
    *("export", "push", "download"),
    *("new-plugin", "help"),
)


class _Group(TyperGroup):
    """Shows an AgegenError as one line and exits with its code; Ctrl-C exits with 130."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=_ORDER.index)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            # Typer passes on how pydantic, its validator, words an error.
            error.message = error.message.removeprefix("Value error, ").replace("Input should be", "it must be")
            raise
        except AgegenError as error:
            # Of the processes of a distributed training, the first on each machine reports the error.
            if read_local_rank()[0] == 0:
                _print_error(str(error), always=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            make_notice_console().print("interrupted", style="yellow")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            discard_stdout()
            raise typer.Exit(1) from None
        except ModuleNotFoundError as error:
            _print_error(explain_missing(error))
            raise typer.Exit(1) from None
        except OSError as error:
            _print_error(explain_os_error(error))
            if error.filename is None:
                discard_stdout()
            raise typer.Exit(1) from None
        except Exception as error:
            _suggest_synonym(error)
            raise


def _suggest_synonym(error: Any) -> None:
    """Add the option that is meant to Typer's NoSuchOption, which it does not export."""
    meant = _SYNONYMS.get(getattr(error, "option_name", ""))
    if meant and error.ctx is not None and any(meant in option.opts for option in error.ctx.command.params):
        error.possibilities = [meant]


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Estimate age and gender from photos of faces; train, evaluate and compare models.",
)

# Named here because the help must not import their readers; a test checks that both lists agree.
LAYOUTS = (
    *("FairFace", "Adience", "APPA-REAL", "IMDB-WIKI", "LAGENDA or IMDB-clean", "CelebA", "a folder with metadata.csv"),
    *("Parquet shards", "UTKFace", "FG-NET", "All-Age-Faces", "AgeDB", "AFAD", "folders by label"),
)
data_app = typer.Typer(
    no_args_is_help=True,
    help="Check, crop and convert datasets.\n\n"
    f"Recognized layouts: {', '.join(LAYOUTS)}; other packages can add more (entry point agegen.layouts). "
    "Tables: CSV, TSV, JSON Lines, Parquet.",
)
app.add_typer(data_app, name="data", rich_help_panel=DATA)


def add_command(
    name: str, example: str, panel: str | None = None, group: typer.Typer = app
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command: its docstring is its help, each paragraph on one line, with an example at the end."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
        text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        return group.command(name=name, help=text, rich_help_panel=panel, epilog=f"Example: {example}")(function)

    return register


def obey_offline(offline: bool) -> None:
    """Keep this process from accessing the network, if asked to."""
    if offline:
        from agegen.hub import go_offline

        go_offline()


def make_notice_console(always: bool = False) -> Console:
    """Return the console for notices and progress: stderr.

    In distributed training only the main process prints; ``always`` prints in every process.
    """
    _replace_unprintable(sys.stderr)
    return EscapingConsole(stderr=True, quiet=read_rank() > 0 and not always, **_LITERALLY)


def _print_error(text: str, always: bool = False) -> None:
    """Print an error on stderr in one line; for ``always`` see :func:`make_notice_console`."""
    make_notice_console(always).print(f"error: {escape_controls(text)}", style="red", soft_wrap=True)


def _replace_unprintable(stream: Any) -> None:
    """Let a stream write ? for characters that its encoding lacks (a Korean file name on a cp1252 terminal)."""
    if hasattr(stream, "reconfigure") and stream.errors == "strict":
        stream.reconfigure(errors="replace")


def confirm_report(path: Path) -> None:
    """Say on stderr where the page of ``--report`` was written."""
    make_notice_console().print(f"report: {path}", soft_wrap=True)


def show_work(notices: Console, what: str = "loading libraries") -> AbstractContextManager[Any]:
    """Show a spinner on a terminal; torch alone takes seconds to import."""
    return notices.status(what) if notices.is_terminal else nullcontext()


def make_output_console() -> Console:
    """Return the console for results: stdout; tables in a pipe keep a readable width."""
    _replace_unprintable(sys.stdout)
    console = EscapingConsole(quiet=read_rank() > 0, **_LITERALLY)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = EscapingConsole(width=120, quiet=read_rank() > 0, **_LITERALLY)
    return console


def write_output(target: str, text: str) -> None:
    """Write text to a file atomically, or to stdout if the target is ``-``."""
    from agegen.files import write_text

    if target == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_text(Path(target), text)


def explain_missing(error: ModuleNotFoundError) -> str:
    """Return in one line what to install, if the missing package is a requirement of agegen.

    Raises the error itself if it is not: that is a bug, which an installation does not fix.
    """
    from importlib.metadata import requires

    missing = (error.name or "").partition(".")[0]
    required = {re.split(r"[^\w-]", line)[0].lower().replace("-", "_") for line in requires("agegen") or []}
    if missing.lower() not in {name.removesuffix("_cpu") for name in required}:
        raise error
    return f"this command requires {missing}, which the small installation lacks: pip install agegen"


def explain_os_error(error: OSError) -> str:
    """Return in one line what the system refused, with the file's name if there is one."""
    reason = error.strerror or str(error)
    if error.filename is not None:
        return f"{error.filename}: {reason}"
    if "temporary directory" in str(error):
        return f"{reason}; set TMPDIR to a writable folder"
    return f"cannot write the output: {reason}"


def discard_stdout() -> None:
    """Redirect stdout to /dev/null after its reader has closed: the flush at exit must not raise again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_version(wanted: bool) -> None:
    """Print the version and exit."""
    from importlib.metadata import version

    if wanted:
        typer.echo(f"agegen {version('agegen')}")
        raise typer.Exit


@app.callback()
def _set_up(
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help=OFFLINE_HELP)] = False,
) -> None:
    """Set up what concerns all commands."""
    obey_offline(offline)
