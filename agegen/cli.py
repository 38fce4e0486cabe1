"""The command line: options in, library calls, results rendered. The only place that prints or exits."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from agegen import __version__
from agegen.errors import AgegenError

INTERRUPTED = 130
# What is printed holds names of files and errors of plugins: "[red]" and ":smile:" in them are no commands.
_LITERALLY: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}


class _Group(TyperGroup):
    """Shows an AgegenError as one line and exits with its code; Ctrl-C exits with 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AgegenError as error:
            make_notice_console().print(f"error: {error}", style="red", soft_wrap=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            make_notice_console().print("interrupted", style="yellow")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            drop_stdout()
            raise typer.Exit(1) from None
        except OSError as error:
            # Files of the user's raise AgegenErrors; what is left is the terminal's or the pipe's side.
            drop_stdout()
            make_notice_console().print(f"error: can't write the output: {error.strerror}", style="red")
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Estimate age and gender from photographs of faces; train, evaluate and compare the models that do it.",
)

Data = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="A folder in UTKFace naming, a CSV or Parquet manifest (path, age, gender), or 'demo'. "
        "Default: $AGEGEN_DATA, else ./data/utkface.",
    ),
]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to compute.")]
Precision = Annotated[str, typer.Option(metavar="auto|fp32|bf16", help="Precision of matrix products.")]
CacheDir = Annotated[
    Path | None,
    typer.Option(help="Where features of frozen backbones are kept. Default: the user's cache folder."),
]
JsonOut = Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write JSON; - is stdout.")]


def make_notice_console() -> Console:
    """Return the console for notices and progress: stderr."""
    return Console(stderr=True, **_LITERALLY)


def show_work(notices: Console, what: str = "loading libraries") -> AbstractContextManager[Any]:
    """Show on a terminal that something is under way; torch alone takes seconds to import."""
    return notices.status(what) if notices.is_terminal else nullcontext()


def make_output_console() -> Console:
    """Return the console for results: stdout; piped tables keep a readable width."""
    console = Console(**_LITERALLY)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=120, **_LITERALLY)
    return console


def write_output(target: str, text: str) -> None:
    """Write text to a file, whole, or to stdout where the target is ``-``."""
    from agegen.files import write_text

    if target == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_text(Path(target), text)


def drop_stdout() -> None:
    """Lead stdout nowhere, where its reader has gone: what Python flushes at exit must not raise again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        typer.echo(f"agegen {__version__}")
        raise typer.Exit


@app.callback()
def _set_up(
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


@app.command()
def train(
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The backbone to train; see `agegen models`.")
    ] = None,
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", help="The run folder. Default: runs/<model>-<time>.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training split.", show_default="model's")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.", show_default="model's")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.", show_default="model's")] = None,
    age_balance: Annotated[
        float | None,
        typer.Option(help="How strongly an epoch favours rare ages, 0 to 1.", show_default="model's"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Decides the split, the weights and the order.", show_default="0")
    ] = None,
    device: Device | None = None,
    precision: Precision | None = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that augment images.", show_default="by cores")
    ] = None,
    split_file: Annotated[Path | None, typer.Option(help="Use the split.csv of another run.")] = None,
    cache_dir: CacheDir = None,
    save_every: Annotated[
        float | None, typer.Option(min=0, help="Seconds between saves of the state.", show_default="60")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with an interrupted run, with the options that it has.")
    ] = None,
) -> None:
    """Train a model; ends with its metrics on the test split and the run folder.

    Ctrl-C finishes the batch, saves, and says how to go on.

    Example: agegen train --model scratch --data data/utkface
    """
    notices = make_notice_console()
    with show_work(notices):
        from agegen.data.records import resolve_data
        from agegen.displays import ProgressDisplay, TrainDisplay
        from agegen.experiment import train_run
        from agegen.resume import read_config
        from agegen.train_setup import TrainConfig
        from agegen.training import BatchResult

    given: dict[str, Any] = {
        "model": model,
        "data": data,
        "out": out,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "age_balance": age_balance,
        "seed": seed,
        "device": device,
        "precision": precision,
        "workers": workers,
        "split_file": split_file,
        "cache_dir": cache_dir,
        "save_every": save_every,
    }
    if resume is not None:
        config = read_config(resume, given)
    elif model is None:
        raise AgegenError("give --model NAME (see `agegen models`), or --resume RUN")
    else:
        chosen = {name: value for name, value in given.items() if value is not None}
        config = TrainConfig(**(chosen | {"data": resolve_data(data)}))
    output = make_output_console()
    interrupts = _Interrupts(notices)
    with ProgressDisplay(output if output.is_terminal else notices) as progress:
        display = TrainDisplay(output, notices, progress)
        for event in train_run(config, progress, interrupts.pending):
            if isinstance(event, BatchResult):
                interrupts.catch()
            display.show(event)


class _Interrupts:
    """From the first batch on: the first Ctrl-C is noted, for the training to finish its batch; a second one kills."""

    def __init__(self, notices: Console) -> None:
        self._notices = notices
        self._noted = False
        self._catching = False

    def pending(self) -> bool:
        return self._noted

    def catch(self) -> None:
        # Signals reach the main thread alone; elsewhere they are somebody else's.
        if not self._catching and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._note)
            self._catching = True

    def _note(self, *_: Any) -> None:
        self._noted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._notices.print("finishing the batch, then saving; Ctrl-C again stops at once", style="yellow")


@app.command(name="eval")
def evaluate(
    run: Annotated[Path | None, typer.Argument(help="A run folder. Default: the newest under ./runs.")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="The weights that ship for this model.")] = None,
    data: Annotated[
        str | None, typer.Option(metavar="PATH", help="Other data, as for train. Default: the run's own.")
    ] = None,
    split: Annotated[str, typer.Option(metavar="test|val|train|all", help="Which faces.")] = "test",
    json_out: JsonOut = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one row per face, .parquet or .csv.")
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    cache_dir: CacheDir = None,
) -> None:
    """Evaluate a run: metrics with 95 % intervals, by group, beside the trivial baseline.

    Example: agegen eval runs/scratch-20260101-120000 --data other-faces --split all
    """
    notices = make_notice_console()
    with show_work(notices):
        from agegen.displays import ProgressDisplay, show_notices
        from agegen.files import format_json
        from agegen.predictions import write_predictions
        from agegen.report import make_groups_table, make_metrics_table
        from agegen.run_evaluation import EvalConfig, evaluate_run

    config = EvalConfig(run, model, data, split, device, precision, cache_dir)
    with ProgressDisplay(notices) as progress:
        result = evaluate_run(config, progress)
    show_notices(notices, result.notices)
    if predictions:
        write_predictions(predictions, result.predictions)
    if json_out:
        write_output(json_out, format_json(result.evaluation.to_json()))
    if json_out != "-":
        output = make_output_console()
        title = f"{result.path} on the split '{result.split}' of {result.source}: {result.evaluation.n:,} faces"
        output.print(make_metrics_table(result.evaluation, title))
        output.print(make_groups_table(result.evaluation))


@app.command()
def predict(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT…", help="Files, folders (recursive) or globs; - reads paths from stdin."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The weights that ship for this model. Default: scratch.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="A run folder or checkpoint of your own instead.")] = None,
    detector: Annotated[
        str, typer.Option(metavar="mtcnn|yunet|none", help="What finds the faces; none takes aligned crops.")
    ] = "mtcnn",
    no_detect: Annotated[bool, typer.Option("--no-detect", help="The same as --detector none.")] = False,
    min_confidence: Annotated[
        float | None, typer.Option(help="Gender below it is 'uncertain', 0.5 to 1.", show_default="model's")
    ] = None,
    json_out: JsonOut = None,
    jsonl_out: Annotated[
        str | None, typer.Option("--jsonl", metavar="FILE|-", help="Write one JSON object a line, as they come.")
    ] = None,
    csv_out: Annotated[str | None, typer.Option("--csv", metavar="FILE|-", help="Write CSV, as it comes.")] = None,
    annotate: Annotated[Path | None, typer.Option(metavar="DIR", help="Write copies with boxes and labels.")] = None,
    crops: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the aligned crops.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after the last finished file of --csv or --jsonl FILE.")
    ] = False,
    demo: Annotated[bool, typer.Option("--demo", help="Use the portrait that matplotlib brings.")] = False,
    engine: Annotated[
        str, typer.Option(metavar="auto|onnx|torch", help="What runs the model; auto is onnx wherever it can be.")
    ] = "auto",
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Find the faces in photographs and estimate the age and gender of each.

    One row per face. Exit code 1 if a file was unreadable. What the shipped models are good for, and what
    they must not be used for, stands in their cards: `agegen models --card NAME`.

    Example: agegen predict photos/ --csv faces.csv --annotate annotated/
    """
    notices = make_notice_console()
    with show_work(notices):
        from agegen.displays import PredictDisplay, ProgressDisplay
        from agegen.photographs import PredictConfig, find_demo_photo, predict_photos

    config = PredictConfig(
        inputs=(*(inputs or ()), *([find_demo_photo()] if demo else [])),
        model=model,
        run=run,
        detector="none" if no_detect else detector,
        min_confidence=min_confidence,
        json=json_out,
        jsonl=jsonl_out,
        csv=csv_out,
        annotate=annotate,
        crops=crops,
        resume=resume,
        device=device,
        precision=precision,
        engine=engine,
    )
    with ProgressDisplay(notices) as progress:
        display = PredictDisplay(notices, progress)
        for event in predict_photos(config, sys.stdin.buffer, sys.stdout.buffer):
            display.show(event)
    if "-" not in config.outputs.values():
        make_output_console().print(display.make_table())
    display.show_summary()
    if display.unreadable:
        raise typer.Exit(1)


@app.command()
def compare(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN…", help="Runs. Default: the newest of each model in ./runs."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="PATH", help="Other data, as for train. Default: the runs' own.")
    ] = None,
    split: Annotated[str, typer.Option(metavar="test|val|train|all", help="Which faces.")] = "test",
    report: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write one self-contained page.")] = None,
    json_out: JsonOut = None,
    device: Device = "auto",
    cache_dir: CacheDir = None,
) -> None:
    """Compare runs on the same faces: metrics with paired intervals, cost, groups, a verdict.

    Example: agegen compare --report comparison.html
    """
    notices = make_notice_console()
    with show_work(notices):
        from agegen.compare_report import render_comparison
        from agegen.comparison import CompareConfig, compare_runs
        from agegen.displays import ProgressDisplay, show_notices
        from agegen.files import format_json
        from agegen.html_report import write_html_report

    config = CompareConfig(tuple(runs or ()), data, split, device, cache_dir)
    with ProgressDisplay(notices) as progress:
        result = compare_runs(config, progress)
    show_notices(notices, result.notices)
    if report:
        write_html_report(report, result)
    if json_out:
        write_output(json_out, format_json(result.to_json()))
    if json_out != "-":
        make_output_console().print(render_comparison(result))


@app.command()
def models(
    json_out: JsonOut = None,
    card: Annotated[
        str | None, typer.Option(metavar="NAME", help="Show the card of the weights that ship for this model.")
    ] = None,
) -> None:
    """List the installed backbones, the weights that ship for them and their licence, or why one can't load.

    Example: agegen models --card scratch
    """
    from dataclasses import asdict

    if card is not None:
        from agegen.weights import read_card

        write_output("-", read_card(card))
        return
    from agegen.cache_dir import choose_cache_dir
    from agegen.catalog import describe_models
    from agegen.files import format_json
    from agegen.report import make_models_table

    notices = make_notice_console()
    with show_work(notices):
        described = describe_models(choose_cache_dir(None) / "models.json")
    if json_out:
        write_output(json_out, format_json([asdict(model) for model in described]))
    if json_out != "-":
        make_output_console().print(make_models_table(described))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE.safetensors", help="Write float16 weights, and their model card."),
    ] = None,
    onnx: Annotated[
        Path | None, typer.Option(metavar="FILE.onnx", help="Write the whole model as ONNX, its weights in float16.")
    ] = None,
    repeat: Annotated[
        list[Path] | None, typer.Option(metavar="RUN", help="Another run of the same command, for the card.")
    ] = None,
) -> None:
    """Write a run's model to files of its own: weights with their card, or ONNX for any runtime.

    The ONNX model takes aligned RGB crops, uint8 (N, size, size, 3), and gives age, spread (years) and p_female.

    Example: agegen export runs/scratch-20260101-120000 --onnx scratch.onnx
    """
    notices = make_notice_console()
    with show_work(notices, "exporting"):
        from agegen.export import ExportConfig, export_run
        from agegen.report import format_size

        written = export_run(ExportConfig(run, weights, onnx, tuple(repeat or ())))
    output = make_output_console()
    for path in written:
        output.print(f"{path} ({format_size(path.stat().st_size)})", soft_wrap=True)


data_app = typer.Typer(no_args_is_help=True, help="Look at data sets.")
app.add_typer(data_app, name="data")


@data_app.command(name="check")
def check(
    path: Annotated[str, typer.Argument(help="A folder in UTKFace naming, a CSV or Parquet manifest, or 'demo'.")],
    run: Annotated[
        Path | None, typer.Option(help="A run or checkpoint; its model points out labels that are likely wrong.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The same with the weights that ship for this model.")
    ] = None,
    json_out: JsonOut = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write one self-contained page.")] = None,
    fix: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv", help="Write a clean manifest, and the reasons for what it leaves out."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Tell what a data set hides: duplicates, conflicting labels, heaped ages, leaks, likely wrong labels.

    Example: agegen data check data/utkface --html check.html --fix clean.csv
    """
    notices = make_notice_console()
    with show_work(notices):
        from agegen.check_report import render_check, write_check_page
        from agegen.data.check import CheckConfig, check_data
        from agegen.data.cleaning import write_clean_manifest
        from agegen.displays import ProgressDisplay
        from agegen.files import format_json

    with ProgressDisplay(notices) as progress:
        report = check_data(CheckConfig(path, run, model, device), progress)
    if html:
        write_check_page(html, report)
    if fix:
        kept, left_out = write_clean_manifest(fix, report)
        notices.print(f"{fix}: {kept:,} rows kept, {left_out:,} left out", soft_wrap=True)
    if json_out:
        write_output(json_out, format_json(report.to_json()))
    if json_out != "-":
        make_output_console().print(render_check(report))


@app.command()
def cache(
    cache_dir: CacheDir = None,
    clear: Annotated[bool, typer.Option("--clear", help="Delete all cached features.")] = False,
) -> None:
    """Show what the feature cache holds, or delete it.

    Example: agegen cache --clear
    """
    from agegen.cache_dir import choose_cache_dir, clear_cache, list_cache
    from agegen.report import format_size, make_cache_table

    root = choose_cache_dir(cache_dir)
    output = make_output_console()
    if clear:
        output.print(f"{format_size(clear_cache(root))} freed in {root}", soft_wrap=True)
        return
    entries = list_cache(root)
    output.print(make_cache_table(entries))
    total = format_size(sum(entry.size for entry in entries))
    output.print(f"{total} in {root}", soft_wrap=True)


def main() -> None:
    """Run the command line."""
    app(prog_name="agegen")
