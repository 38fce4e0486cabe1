"""Every command and every option has a help text and stands in README."""

import re
from pathlib import Path

import pytest
import typer.main

from agegen.cli import app

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
# README's table of commands; options that commands share stand in the row of each.
ROWS = [line.replace("\\|", "|") for line in README.splitlines() if line.startswith("| `agegen ")]


def walk(command, path=("agegen",)):
    children = getattr(command, "commands", None)
    if children is None:
        yield " ".join(path), command
        return
    for name, child in children.items():
        yield from walk(child, (*path, name))


COMMANDS = dict(walk(typer.main.get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_told_with_an_example(name):
    text = COMMANDS[name].help
    assert text
    assert text.splitlines()[0].endswith(".")
    assert f"Example: {name}" in text
    assert any(row.startswith(f"| `{name}") for row in ROWS), f"README's table lacks {name}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help_and_stands_in_readme(name):
    told = " ".join(row for row in ROWS if row.startswith(f"| `{name}"))
    for parameter in COMMANDS[name].params:
        if parameter.name == "help":
            continue
        assert getattr(parameter, "help", None), f"{name}: {parameter.name} has no help"
        for flag in (opt for opt in parameter.opts if opt.startswith("--")):
            assert re.search(rf"{flag}\b", told), f"README's row of {name} lacks {flag}"


def test_every_topic_can_be_shown(agegen):
    listed = agegen("help").stdout
    topics = [line.split()[0] for line in listed.splitlines()[1:]]
    assert topics == [
        "crops",
        "data-check",
        "json",
        "method",
        "onnx",
        "plugins",
        "run-folder",
        "scale",
        "serve",
        "studies",
    ]
    for topic in topics:
        shown = agegen("help", topic)
        assert shown.exit_code == 0
        assert shown.stdout.startswith("# ")
        assert topic in COMMANDS["agegen help"].help
    wrong = agegen("help", "nonsense")
    assert wrong.exit_code == 1
    assert "there is no topic 'nonsense'" in wrong.stderr
