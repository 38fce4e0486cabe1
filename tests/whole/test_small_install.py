"""An installation without torch, for prediction only: small, and with clear errors for everything else."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

import agegen

pytestmark = pytest.mark.slow

ROOT = Path(agegen.__file__).parents[1]
# Size limit in megabytes of the virtual environment, without the pip and setuptools that it starts with.
MAX_SIZE = 440


def run(*words):
    return subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The bin folder of a new virtual environment with the packages for prediction."""
    folder = tmp_path_factory.mktemp("small") / "env"
    assert run(sys.executable, "-m", "venv", folder).returncode == 0
    before = measure_size(folder)
    pip = folder / "bin" / "pip"
    for words in (["--no-deps", ROOT], ["-r", ROOT / "agegen" / "predict" / "requirements.txt"]):
        done = run(pip, "install", "-q", *words)
        if "No matching distribution" in done.stderr or "Could not find a version" in done.stderr:
            pytest.skip("no package registry available")
        assert done.returncode == 0, done.stderr[-2000:]
    size = measure_size(folder) - before
    print(f"{size:.0f} MB")
    assert size < MAX_SIZE
    return folder / "bin"


def measure_size(folder):
    """Return the size of all files in megabytes."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def serve_once(small, portrait):
    words = [str(small / "agegen"), "serve", "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = re.search(r"http://[^\s;]+", process.stderr.readline())[0]
            with urlopen(Request(f"{address}/v1/faces", portrait.read_bytes()), timeout=60) as answer:
                assert [row["status"] for row in json.load(answer)] == ["ok"]
        finally:
            process.terminate()
        assert process.wait(30) == 0


@pytest.mark.skipif(os.name != "posix" or not (ROOT / "pyproject.toml").exists(), reason="requires a checkout")
def test_it_predicts_and_other_commands_name_what_is_missing(small, portrait):
    assert run(small / "python", "-c", "import torch").returncode != 0
    rows = json.loads(run(small / "agegen", "predict", portrait, "--json", "-").stdout)
    assert [row["status"] for row in rows] == ["ok"]
    assert run(small / "agegen", "models", "--card", "compact").stdout.startswith("# Model card")
    serve_once(small, portrait)
    for words in (["train", "--model", "scratch", "--data", "demo"], ["eval"], ["compare"], ["models"]):
        done = run(small / "agegen", *words)
        assert done.returncode == 1
        assert "which the small installation lacks: pip install agegen" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
