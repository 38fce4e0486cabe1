"""The command line: options in, library calls, results rendered. The only place that prints or exits."""

from __future__ import annotations

import os
import re
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from agegen.distributed import read_local_rank, read_rank
from agegen.errors import AgegenError

# What shells expect of a program that Ctrl-C ended: 128 + SIGINT.
INTERRUPTED = 130
# What is printed holds names of files and errors of plugins: "[red]" and ":smile:" in them are no commands.
_LITERALLY: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}


class _Group(TyperGroup):
    """Shows an AgegenError as one line and exits with its code; Ctrl-C exits with 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AgegenError as error:
            # Of the processes of a distributed training, the first on each machine reports the error.
            if read_local_rank()[0] == 0:
                make_notice_console(always=True).print(f"error: {error}", style="red", soft_wrap=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            make_notice_console().print("interrupted", style="yellow")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            drop_stdout()
            raise typer.Exit(1) from None
        except ModuleNotFoundError as error:
            make_notice_console().print(f"error: {explain_missing(error)}", style="red", soft_wrap=True)
            raise typer.Exit(1) from None
        except OSError as error:
            make_notice_console().print(f"error: {explain_os_error(error)}", style="red", soft_wrap=True)
            if error.filename is None:
                drop_stdout()
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Estimate age and gender from photographs of faces; train, evaluate and compare the models that do it.",
)

# Named here, for the help must not import their readers; a test holds the two together.
LAYOUTS = (
    *("FairFace", "Adience", "APPA-REAL", "IMDB-WIKI", "LAGENDA or IMDB-clean", "CelebA", "a folder with metadata.csv"),
    *("Parquet shards", "UTKFace", "FG-NET", "All-Age-Faces", "AgeDB", "AFAD", "folders by label"),
)
data_app = typer.Typer(
    no_args_is_help=True,
    help=f"Check, crop and convert data sets. Layouts that are recognised by themselves: {', '.join(LAYOUTS)}; further "
    "ones come with other packages (entry point agegen.layouts). Tables: CSV, TSV, JSON Lines, Parquet.",
)
app.add_typer(data_app, name="data")

Data = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH",
        help="A folder in a known layout, a table (CSV, TSV, JSON Lines, Parquet), Parquet at an address "
        "(hf://datasets/OWNER/NAME/PATH.parquet, s3://…) or 'demo'; give it again for more data, PATH::0.5 to draw its "
        "faces half as often. Default: $AGEGEN_DATA, else ./data/utkface.",
    ),
]

OtherData = Annotated[
    list[str] | None,
    typer.Option(metavar="PATH", help="Other data, as for train; may be given again. Default: the run's own."),
]

CropDetector = Annotated[
    str | None,
    typer.Option(
        "--detector",
        metavar="mtcnn|yunet",
        help="The data are photographs: find and align the largest face of each. Default: they are crops of faces.",
    ),
]

AgeColumn = Annotated[
    str | None, typer.Option(metavar="NAME", help="The column with the age, where a table has several.")
]

GenderCodes = Annotated[
    str | None,
    typer.Option(
        metavar="WORD,WORD", help="What 0 and 1, or 1 and 2, stand for. Default: UTKFace's male,female for 0 and 1."
    ),
]

Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to compute.")]

Precision = Annotated[str, typer.Option(metavar="auto|fp32|bf16", help="Precision of matrix products.")]

CacheDir = Annotated[
    Path | None,
    typer.Option(help="Where features of frozen backbones are kept. Default: the user's cache folder."),
]

Protocol = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The ages and fractions of published comparisons: utkface-21-60 (CORAL, MWR) or utkface-full.",
    ),
]

ShippedModel = Annotated[
    str | None, typer.Option(metavar="NAME", help="The weights that ship for this model. Default: compact.")
]

Weights = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Which of a model's shipped weights, see `agegen models`.", show_default="default"
    ),
]

JsonOut = Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write JSON; - is stdout.")]


Offline = Annotated[bool, typer.Option("--offline", help="Never try the network: what isn't at hand is an error.")]


def obey_offline(offline: bool) -> None:
    """Keep this process from the network where that is wanted; also before a command: ``agegen --offline …``."""
    if offline:
        from agegen.hub import go_offline

        go_offline()


def make_notice_console(always: bool = False) -> Console:
    """Return the console for notices and progress: stderr; of processes that train together the first one's speaks.

    ``always``: so does that of any other.
    """
    _replace_unprintable(sys.stderr)
    return Console(stderr=True, quiet=read_rank() > 0 and not always, **_LITERALLY)


def _replace_unprintable(stream: Any) -> None:
    """Let a stream write a question mark for what its encoding hasn't got (a name in Korean, on a cp1252 terminal)."""
    if hasattr(stream, "reconfigure") and stream.errors == "strict":
        stream.reconfigure(errors="replace")


def show_work(notices: Console, what: str = "loading libraries") -> AbstractContextManager[Any]:
    """Show on a terminal that something is under way; torch alone takes seconds to import."""
    return notices.status(what) if notices.is_terminal else nullcontext()


def make_output_console() -> Console:
    """Return the console for results: stdout; piped tables keep a readable width."""
    _replace_unprintable(sys.stdout)
    console = Console(quiet=read_rank() > 0, **_LITERALLY)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=120, quiet=read_rank() > 0, **_LITERALLY)
    return console


def write_output(target: str, text: str) -> None:
    """Write text to a file, whole, or to stdout where the target is ``-``."""
    from agegen.files import write_text

    if target == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_text(Path(target), text)


def explain_missing(error: ModuleNotFoundError) -> str:
    """Return in one line what to install, where a package is missing that agegen asks for.

    Raises the error itself where agegen doesn't ask for it: that is a fault, and nobody's to install.
    """
    from importlib.metadata import requires

    missing = (error.name or "").partition(".")[0]
    wanted = {re.split(r"[^\w-]", line)[0].lower().replace("-", "_") for line in requires("agegen") or []}
    if missing.lower() not in {name.removesuffix("_cpu") for name in wanted}:
        raise error
    return f"this command needs {missing}, and this is a small installation for predicting: pip install agegen"


def explain_os_error(error: OSError) -> str:
    """Return in one line what the system refused: a file by its name; without one, the terminal or the pipe."""
    reason = error.strerror or str(error)
    if error.filename is not None:
        return f"{error.filename}: {reason}"
    if "temporary directory" in str(error):
        return f"{reason}; set TMPDIR to a folder that can be written"
    return f"can't write the output: {reason}"


def drop_stdout() -> None:
    """Lead stdout nowhere, where its reader has gone: what Python flushes at exit must not raise again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_version(wanted: bool) -> None:
    """Print the version and leave."""
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
    offline: Offline = False,
) -> None:
    """Set up what concerns all commands."""
    obey_offline(offline)
