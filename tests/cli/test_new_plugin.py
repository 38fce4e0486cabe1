"""The package that ``agegen new-plugin`` creates: really installed, it passes its contract test and can be trained."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import agegen.cli
from agegen.cli.new_plugin import write_plugin
from agegen.errors import AgegenError

pytestmark = pytest.mark.slow

TOPIC = Path(agegen.cli.__file__).with_name("topics") / "plugins.md"
# The dependencies are installed already, and building a package of four files needs no index.
OFFLINE = ("--no-deps", "--no-build-isolation", "--quiet")


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, **options)


def list_commands():
    """Return the commands that `agegen help plugins` gives for a new backbone, split into words."""
    lines = TOPIC.read_text(encoding="utf-8").partition("## Add a backbone\n\n")[2].splitlines()
    return [shlex.split(line) for line in lines[: lines.index("")]]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Run the first two commands; return the package's folder, and an environment in which it is installed."""
    folder = tmp_path_factory.mktemp("new")
    write, install, *_ = list_commands()
    done = run(sys.executable, "-m", *write, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert install[:3] == ["pip", "install", "-e"]
    package = folder / install[3].partition("[")[0]
    site = folder / "site"
    # Not editable, and in a folder of its own instead of this environment.
    done = run(sys.executable, "-m", "pip", "install", *OFFLINE, "--target", str(site), str(package))
    assert done.returncode == 0, done.stderr
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    return package, os.environ | {"PYTHONPATH": path}


def test_it_passes_its_contract_test(installed):
    package, env = installed
    command = list_commands()[2]
    done = run(sys.executable, "-m", *command, "-p", "no:cacheprovider", env=env, cwd=package.parent)
    assert done.returncode == 0, done.stdout
    assert "6 passed" in done.stdout


def test_it_can_be_trained_and_is_listed(installed, tmp_path):
    _, env = installed
    done = run(sys.executable, "-m", *list_commands()[3], "--out", str(tmp_path / "run"), env=env)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "best.onnx").is_file()
    listed = run(sys.executable, "-m", "agegen", "models", env=env | {"COLUMNS": "200"}).stdout
    assert "agegen-mine 0.1.0" in listed


def test_ruff_has_no_complaints(installed):
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
def test_invalid_names_are_rejected(name, tmp_path):
    with pytest.raises(AgegenError, match="is not a valid plugin name"):
        write_plugin(name, tmp_path / "p")


def test_existing_names_and_files_are_kept(tmp_path, agegen):
    with pytest.raises(AgegenError, match="the name 'scratch' is taken by agegen"):
        write_plugin("scratch", tmp_path / "p")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    result = agegen("new-plugin", "mine", "--out", tmp_path / "full")
    assert result.exit_code == 1
    assert "is not empty; choose another --out" in result.stderr
    assert agegen("new-plugin", "mine").exit_code == 0
    assert (tmp_path / "agegen-mine" / "agegen_mine" / "__init__.py").is_file()
