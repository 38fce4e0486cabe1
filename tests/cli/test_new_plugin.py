"""The package that ``agegen new-plugin`` writes: installed for real, it keeps the contract and trains."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from agegen.cli.new_plugin import write_plugin
from agegen.errors import AgegenError


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, **options)


README = Path(__file__).resolve().parents[2] / "README.md"
# The packages are there already, and no index is needed to build one of four files.
OFFLINE = ("--no-deps", "--no-build-isolation", "--quiet")


def list_commands():
    """Return the commands of README's section on plugins, word by word, up to what it says of timm."""
    section = README.read_text(encoding="utf-8").partition("## Your own backbone")[2]
    block = section.partition("```sh\n")[2].partition("```")[0]
    return [shlex.split(line, comments=True) for line in block.splitlines()]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What README's first two commands leave behind, and an environment in which the package is installed."""
    folder = tmp_path_factory.mktemp("new")
    write, install, *_ = list_commands()
    done = run(sys.executable, "-m", *write, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert install[:3] == ["pip", "install", "-e"]
    package = folder / install[3].partition("[")[0]
    site = folder / "site"
    # Not editable, and beside this environment rather than in it.
    done = run(sys.executable, "-m", "pip", "install", *OFFLINE, "--target", str(site), str(package))
    assert done.returncode == 0, done.stderr
    return package, os.environ | {"PYTHONPATH": str(site)}


def test_it_passes_its_own_contract_test(installed):
    package, env = installed
    command = list_commands()[2]
    done = run(sys.executable, "-m", *command, "-p", "no:cacheprovider", env=env, cwd=package.parent)
    assert done.returncode == 0, done.stdout
    assert "6 passed" in done.stdout


def test_it_trains_and_stands_in_the_list(installed, tmp_path):
    _, env = installed
    done = run(sys.executable, "-m", *list_commands()[3], "--out", str(tmp_path / "run"), env=env)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "best.onnx").is_file()
    listed = run(sys.executable, "-m", "agegen", "models", env=env | {"COLUMNS": "200"}).stdout
    assert "agegen-mine 0.1.0" in listed


def test_what_it_writes_is_clean(installed):
    package, _ = installed
    done = run(
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--select",
        "E,F,I,D100,D101,D102,D103,UP",
        "--line-length",
        "120",
        str(package / "agegen_mine"),
    )
    if "No module named" in done.stderr:
        pytest.skip("ruff is not installed")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["Tiny", "1st", "a b", "../x", "", "tiny-", "class"])
def test_names_that_are_none(name, tmp_path):
    with pytest.raises(AgegenError, match="is not a valid plugin name"):
        write_plugin(name, tmp_path / "p")


def test_what_is_there_already_stays(tmp_path, agegen):
    with pytest.raises(AgegenError, match="the name 'scratch' is taken by agegen"):
        write_plugin("scratch", tmp_path / "p")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    result = agegen("new-plugin", "mine", "--out", tmp_path / "full")
    assert result.exit_code == 1
    assert "is not empty; choose another --out" in result.stderr
    assert agegen("new-plugin", "mine").exit_code == 0
    assert (tmp_path / "agegen-mine" / "agegen_mine" / "__init__.py").is_file()
