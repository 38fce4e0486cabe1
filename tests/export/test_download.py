"""``agegen download`` against a Hub on loopback, and without a network."""

import os
import subprocess
import sys

import pytest
from conftest import require_shared
from serving import serve_hub

from agegen.faces.yunet import YUNET_FILE, YUNET_REPO

PLACE = f"/{YUNET_REPO}/resolve/main/{YUNET_FILE}"


def run(arguments, home, **env):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command = [sys.executable, "-m", "agegen", *map(str, arguments)]
    settings = clean | {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"} | env
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.real
def test_yunet_is_downloaded_and_then_preferred(tmp_path, portrait):
    folder = require_shared("hf") / "hub" / f"models--{YUNET_REPO.replace('/', '--')}" / "snapshots"
    content = next(folder.glob(f"*/{YUNET_FILE}")).read_bytes()
    before = run(["predict", portrait, "--csv", "-", "--offline"], tmp_path)
    assert ",mtcnn," in before.stdout
    with serve_hub({PLACE: content}) as (address, requests):
        done = run(["download"], tmp_path, HF_ENDPOINT=address)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "detector yunet: available\n"
        assert requests
        count = len(requests)
        # The file is available, so there are no further requests.
        after = run(["predict", portrait, "--csv", "-"], tmp_path, HF_ENDPOINT=address)
        assert run(["download", "--offline"], tmp_path, HF_ENDPOINT=address).returncode == 0
        assert len(requests) == count
    assert ",yunet," in after.stdout


def test_another_file_with_that_name_is_rejected(tmp_path):
    with serve_hub({PLACE: b"another detector"}) as (address, _):
        done = run(["download"], tmp_path, HF_ENDPOINT=address)
    assert done.returncode == 1
    assert "is not the expected YuNet file" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("words", [["download", "--offline"], ["--offline", "download"]])
def test_offline_sends_no_request(tmp_path, words):
    with serve_hub({PLACE: b"another detector"}) as (address, requests):
        done = run(words, tmp_path, HF_ENDPOINT=address)
    assert (done.returncode, requests) == (1, [])
    assert "cannot be downloaded" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_all_lists_missing_files_and_continues(tmp_path):
    done = run(["download", "--all", "--offline"], tmp_path)
    assert done.returncode == 1
    assert "detector mtcnn: available" in done.stdout
    assert "backbone compact: available" in done.stdout
    assert "timm/vgg16.tv_in1k are not in the Hugging Face cache" in done.stderr


def test_a_newer_file_on_the_hub_replaces_that_in_the_cache(tmp_path, monkeypatch):
    code = (
        "import sys; from agegen.hub import download_file\n"
        "print(download_file('me/faces', 'f.txt', sys.argv[1] or None, newest=True).read_text())"
    )

    def download(revision="", **env):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        settings = clean | {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"} | env
        command = [sys.executable, "-c", code, revision]
        done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    files = {"/me/faces/resolve/main/f.txt": b"old"}
    with serve_hub(files) as (address, requests):
        assert download(HF_ENDPOINT=address) == "old"
        files["/me/faces/resolve/main/f.txt"] = b"new"
        monkeypatch.setattr("serving.COMMIT", "b" * 40)
        assert download(HF_ENDPOINT=address) == "new"
        asked = len(requests)
        assert download("b" * 40, HF_ENDPOINT=address) == "new"
        assert download(HF_ENDPOINT=address, HF_HUB_OFFLINE="1") == "new"
        assert len(requests) == asked
    assert download(HF_ENDPOINT=address) == "new"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"XDG_CACHE_HOME": "{tmp}/xdg"},
        {"XDG_CACHE_HOME": "{tmp}/xdg", "HF_HOME": "~/hf"},
        {"HF_HOME": "$PLACE/hf", "PLACE": "{tmp}/place"},
        {"HF_HOME": "{tmp}/hf", "HUGGINGFACE_HUB_CACHE": "{tmp}/old"},
        {"HUGGINGFACE_HUB_CACHE": "{tmp}/old", "HF_HUB_CACHE": "{tmp}/new"},
    ],
)
def test_the_cache_is_where_the_hub_client_puts_it(settings, tmp_path):
    """Otherwise a file that was downloaded is never found, and `auto` silently chooses the other detector."""
    names = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")
    env = {name: value for name, value in os.environ.items() if name not in names} | {"HOME": str(tmp_path)}
    code = (
        "from pathlib import Path\n"
        "from huggingface_hub.constants import HF_HUB_CACHE\n"
        "from agegen.hub import find_cached\n"
        "path = Path(HF_HUB_CACHE, 'models--a--b', 'snapshots', '123', 'file')\n"
        "path.parent.mkdir(parents=True)\n"
        "path.touch()\n"
        "assert find_cached('a/b', 'file', '123') == path, (HF_HUB_CACHE, find_cached('a/b', 'file', '123'))\n"
    )
    chosen = {name: value.format(tmp=tmp_path) for name, value in settings.items()}
    done = subprocess.run([sys.executable, "-c", code], env=env | chosen, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
