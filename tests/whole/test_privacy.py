"""agegen makes no network connections, and leaves nothing in HOME except its own cache."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Address families of connections to other machines; unix and netlink are local.
OUTWARD = ("AF_INET,", "AF_INET6,")
# Telemetry may be sent in the background after the work is done.
LINGER = "; import time; time.sleep(8)"


def run_alone(code, home, folder):
    """Run Python in an empty HOME, without network if possible; return the connections that it tried to open."""
    trace = folder / "trace"
    command = [sys.executable, "-c", code]
    if shutil.which("strace"):
        command = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg", "-o", str(trace), *command]
    elif os.environ.get("AGEGEN_REQUIRE_SHARED") == "1":
        pytest.fail("strace is required here")
    if os.geteuid() == 0 and shutil.which("unshare"):
        command = ["unshare", "--net", *command]
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "VIRTUAL_ENV") if name in os.environ}
    done = subprocess.run(
        command, cwd=folder, env={**kept, "HOME": str(home)}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lines = trace.read_text(errors="replace").splitlines() if trace.exists() else []
    return [line for line in lines if any(family in line for family in OUTWARD)]


def list_files(home):
    """Return the first two levels of the paths of all files."""
    return sorted({"/".join(path.relative_to(home).parts[:2]) for path in home.rglob("*") if path.is_file()})


@pytest.mark.slow
def test_prediction_opens_no_connection(portrait, tmp_path):
    (tmp_path / "home").mkdir()
    code = f"from agegen import Estimator; assert Estimator.load().predict({str(portrait)!r})" + LINGER
    assert run_alone(code, tmp_path / "home", tmp_path) == []
    # The networks of the detector, which are converted once.
    assert list_files(tmp_path / "home") == [".cache/agegen"]
    assert [path.name for path in (tmp_path / "home/.cache/agegen").iterdir()] == ["detectors"]


@pytest.mark.slow
def test_training_opens_no_connection(faces_folder, tmp_path):
    (tmp_path / "home").mkdir()
    arguments = ["train", "--model", "scratch", "--data", str(faces_folder), "--epochs", "1", "--batch-size", "16"]
    code = f"import sys; sys.argv = ['agegen', *{arguments!r}]; from agegen.cli import main; main()"
    assert run_alone(code, tmp_path / "home", tmp_path) == []
    assert set(list_files(tmp_path / "home")) <= {".cache/agegen"}
    assert list((tmp_path / "runs").glob("*/curves.png"))


def test_telemetry_is_disabled_before_libraries_are_imported():
    code = "import agegen, os; print(os.environ['ORT_DISABLE_TELEMETRY'], os.environ['NO_ALBUMENTATIONS_UPDATE'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]
    source = (Path(__file__).parents[2] / "agegen" / "__init__.py").read_text()
    assert source.index("ORT_DISABLE_TELEMETRY") < source.index("def __getattr__")
