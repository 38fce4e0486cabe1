"""Options: defined once, as fields of dataclasses; choices are checked before anything heavy is imported."""

import subprocess
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from typer.testing import CliRunner

from agegen.cli.help import list_commands
from agegen.datatools.config import CheckConfig, ConvertConfig, CropConfig, SplitConfig
from agegen.evaluate.config import CalibrateConfig, CompareConfig, EvalConfig
from agegen.options import from_plain, list_options, select_fields, to_plain, with_options
from agegen.predict.config import ExplainConfig, PredictConfig
from agegen.serve.config import ServeConfig
from agegen.train.config import StudyConfig, TrainConfig

COMMANDS = dict(list_commands())
CONFIGS = {
    "predict": PredictConfig,
    "explain": ExplainConfig,
    "train": StudyConfig,
    "eval": EvalConfig,
    "compare": CompareConfig,
    "calibrate": CalibrateConfig,
    "split": SplitConfig,
    "data check": CheckConfig,
    "data crop": CropConfig,
    "data convert": ConvertConfig,
    "serve": ServeConfig,
}


@dataclass(frozen=True)
class Inner:
    size: Annotated[int, typer.Option(help="A size.")] = 3
    colour: Annotated[Literal["red", "blue"], typer.Option(help="A colour.")] = "red"


@dataclass(frozen=True)
class Config:
    paths: Annotated[tuple[str, ...], typer.Argument(help="Paths.")]
    ages: Annotated[tuple[int, ...], typer.Option(help="Ages.")] = ()
    out: Annotated[Path | None, typer.Option(help="A file.")] = None
    inner: Inner = Inner()
    internal: int = field(default=7, metadata={"resume": "free"})


def run(words, partial=False):
    """Return what a command decorated with the options receives, and the runner's result."""
    received = []
    app = typer.Typer()

    @app.command()
    @with_options(Config, partial)
    def command(config: Config, *, loud: Annotated[bool, typer.Option("--loud", help="Own option.")] = False) -> None:
        received.append((config, loud))

    return received, CliRunner().invoke(app, words)


def test_a_command_receives_its_config():
    received, result = run(["a", "b", "--ages", "5", "--ages", "6", "--size", "4", "--out", "x.csv", "--loud"])
    assert result.exit_code == 0, result.output
    assert received == [(Config(("a", "b"), (5, 6), Path("x.csv"), Inner(4)), True)]


def test_options_that_are_not_given_keep_the_defaults_of_the_fields():
    assert run(["a"])[0] == [(Config(("a",)), False)]


def test_a_partial_command_receives_only_what_was_given():
    received, result = run(["--colour", "blue", "--size", "3"], partial=True)
    assert result.exit_code == 0, result.output
    assert received == [({"colour": "blue", "size": 3}, False)]


def test_required_arguments_and_wrong_choices_are_usage_errors():
    assert run([])[1].exit_code == 2
    received, result = run(["a", "--colour", "green"])
    assert result.exit_code == 2
    assert not received
    assert all(word in result.output for word in ("--colour", "green", "red", "blue"))


def test_configs_survive_json():
    config = TrainConfig("scratch", ("a", "b"), Path("out"), split_file=Path("s.csv"), soft_labels=("t.parquet",))
    plain = to_plain(config)
    assert plain["out"] == "out"
    assert TrainConfig(**from_plain(TrainConfig, {**plain, "unknown": 1, "data": ["a", "b"]})) == config


@pytest.mark.parametrize("name", CONFIGS)
def test_every_option_of_a_config_is_an_option_of_its_command(name):
    options = {parameter.name for parameter in COMMANDS[f"agegen {name}"].params}
    assert {field.name for field, _ in list_options(CONFIGS[name])} <= options


def test_what_may_change_on_resume_is_part_of_the_fields():
    assert select_fields(TrainConfig, resume="free") == ("workers", "cache_dir", "save_every", "compile")
    assert select_fields(TrainConfig, resume="never") == ("out", "resume")
    assert "device" in select_fields(TrainConfig, study="free")
    assert {"min_score", "boxes", "fps"} <= set(select_fields(PredictConfig, decides_rows=True))
    names = {one.name for one in fields(TrainConfig)}
    assert {"model", "data", "lr"} <= names - set(select_fields(TrainConfig, recorded=False))


@pytest.mark.parametrize(
    ("words", "choices"),
    [
        (["eval", "--split", "tset"], ("test", "val", "train", "all")),
        (["train", "--model", "scratch", "--precision", "fp61"], ("auto", "fp32", "bf16")),
        (["train", "--model", "scratch", "--augment", "gpu"], ("auto", "loaders", "device")),
        (["train", "--model", "scratch", "--protocol", "x"], ("utkface-21-60", "utkface-full")),
        (["predict", "a.jpg", "--engine", "tensorrt"], ("auto", "onnx", "torch")),
        (["predict", "a.jpg", "--detector", "dlib"], ("auto", "mtcnn", "yunet", "none")),
        (["compare", "--device", "tpu"], ("auto", "cpu", "cuda")),
        (["explain", "a.jpg", "--method", "lime"], ("occlusion", "grad-cam")),
    ],
)
def test_a_wrong_choice_names_the_valid_ones_before_anything_heavy_is_imported(words, choices):
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom agegen.cli import app\n"
        f"result = CliRunner().invoke(app, {words!r}, env={{'COLUMNS': '200'}})\n"
        "print(result.exit_code, result.output)\n"
        "print([name for name in ('torch', 'numpy', 'pandas', 'cv2', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("2 ")
    assert words[-2] in done.stdout
    assert all(f"'{choice}'" in done.stdout for choice in choices)
    assert done.stdout.splitlines()[-1] == "[]"


def test_report_is_the_option_for_html_pages():
    pages = {
        name: [option.opts for option in command.params if option.metavar == "FILE.html"]
        for name, command in list_commands()
    }
    assert {name for name, found in pages.items() if found} == {
        *("agegen predict", "agegen eval", "agegen compare", "agegen data check")
    }
    assert all(options == ["--report"] for found in pages.values() for options in found)
    hidden = [option for option in COMMANDS["agegen data check"].params if "--html" in option.opts]
    assert [option.hidden for option in hidden] == [True]
