"""Help: every command and option is described, the reference is current, and every topic can be shown."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agegen.cli.help import find_pages, format_reference, list_commands
from agegen.model.weights import find_weights

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
COMMANDS = dict(list_commands())


def list_shown(command):
    return [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_described_with_an_example(name):
    command = COMMANDS[name]
    summary = command.help.splitlines()[0]
    assert summary.endswith(".")
    assert len(summary) <= 70
    assert command.epilog.startswith(f"Example: {name}")
    assert f"`{name}" in README, f"README does not mention {name}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_described(name):
    for parameter in list_shown(COMMANDS[name]):
        assert parameter.help, f"{name}: {parameter.name} has no help"


def test_help_lists_commands_by_panel(agegen):
    shown = agegen("--help").stdout
    panels = re.findall(r"─ (Use|Train|Data|Share|Extend) ─", shown)
    assert panels == ["Use", "Train", "Data", "Share", "Extend"]
    order = re.findall(r"│ (predict|serve|train|eval|data|split|export|new-plugin|help) ", shown)
    assert order == ["predict", "serve", "train", "eval", "data", "split", "export", "new-plugin", "help"]


def test_options_are_grouped_in_panels(agegen):
    for command, panels in (
        ("predict", ("Output", "Faces", "Video", "Model")),
        ("train", ("Model", "Data", "Training")),
    ):
        shown = agegen(command, "--help").stdout
        places = [shown.index(f"─ {panel} ─") for panel in panels]
        assert places == sorted(places)
        assert "Example: agegen" in shown.rstrip().splitlines()[-1]


def test_the_reference_is_current():
    """After a change: agegen help commands > agegen/cli/topics/commands.md."""
    reference = format_reference()
    assert find_pages()["commands"].read_text(encoding="utf-8") == reference
    for name, command in COMMANDS.items():
        assert f"\n## {name}\n" in reference
        section = reference.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        for parameter in list_shown(command):
            if parameter.param_type_name == "option":
                assert parameter.opts[0] in section


def test_every_topic_can_be_shown(agegen):
    listed = agegen("help").stdout
    topics = [line.split()[0] for line in listed.splitlines()[1:]]
    assert topics == sorted(find_pages())
    for topic in topics:
        shown = agegen("help", topic)
        assert shown.exit_code == 0
        assert shown.stdout.startswith("# ")
    wrong = agegen("help", "nonsense")
    assert wrong.exit_code == 1
    assert "unknown topic 'nonsense'. Choose one of commands, crops" in wrong.stderr


def test_topics_are_rendered_on_a_terminal(monkeypatch, agegen):
    import io

    from rich.console import Console

    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100)
    monkeypatch.setattr("agegen.cli.help.make_output_console", lambda: console)
    assert agegen("help", "onnx").exit_code == 0
    shown = stream.getvalue()
    assert "\x1b[" in shown
    assert "```" not in shown


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["default", "open"])
def test_the_example_of_onnx_gives_the_values_of_predict(agegen, portrait, tmp_path, weights):
    page = find_pages()["onnx"].read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert set(re.findall(r"^(?:import|from) (\w+)", example, re.MULTILINE)) == {"json", "numpy", "onnxruntime", "PIL"}
    (command,) = re.findall(r"^    agegen (predict .*)$", page, re.MULTILINE)
    shutil.copy(portrait, "photo.jpg")
    files = [find_weights("compact", weights).with_suffix(suffix) for suffix in (".int8.onnx", ".onnx")]
    shutil.copy(next(path for path in files if path.is_file()), "model.onnx")
    (row,) = json.loads(agegen(*command.split(), "--weights", weights, "--json", "-").stdout)
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=True)
    expected = (
        f"age {row['age']} ({row['age_low']}–{row['age_high']}), {row['gender']}, P(female) {row['p_female']:.4f}"
    )
    assert done.stdout.startswith(expected), (done.stdout, row)
