"""Data at an address: on a Hub made here, and wherever fsspec reaches."""

import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from agegen.data.loading import load_records, load_sources
from agegen.errors import DataError

COMMIT = "e" * 40


@contextmanager
def run_hub(files):
    """A Hub on loopback with one data set, me/faces, at one revision."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._answer(True)

        def do_HEAD(self):
            self._answer(False)

        def _answer(self, body):
            path = self.path.partition("?")[0]
            if path.startswith("/api/datasets/me/faces/revision/"):
                listed = [{"rfilename": name} for name in files]
                about = {"id": "me/faces", "sha": COMMIT, "siblings": listed, "private": False, "tags": []}
                content = json.dumps(about | {"disabled": False, "downloads": 0, "likes": 0}).encode()
            elif path.startswith("/api/datasets/me/faces/tree/"):
                content = json.dumps(
                    [{"type": "file", "path": name, "size": len(one), "oid": "0"} for name, one in files.items()]
                ).encode()
            else:
                content = files.get(path.removeprefix(f"/datasets/me/faces/resolve/{COMMIT}/"))
            self.send_response(200 if content is not None else 404)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hash(content):x}"')
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if body and content is not None:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def shards(tmp_path_factory, faces_folder):
    """Drawn faces as two Parquet files with the pictures inside."""
    from agegen.convert.convert import ConvertConfig, convert_data

    folder = tmp_path_factory.mktemp("shards")
    halves = [folder / "one", folder / "two"]
    names = sorted(faces_folder.iterdir())
    for half, part in zip(halves, (names[:40], names[40:]), strict=True):
        half.mkdir()
        for name in part:
            shutil.copy(name, half)
        convert_data(ConvertConfig((str(half),), half.with_suffix(".parquet"), embed=True))
    return [half.with_suffix(".parquet") for half in halves]


def run(words, home, **env):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings = clean | {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "XDG_CACHE_HOME": str(home)} | env
    command = [sys.executable, "-m", "agegen", *map(str, words)]
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=240, check=False)


def test_from_the_hub(shards, tmp_path):
    files = {f"data/{path.name}": path.read_bytes() for path in shards} | {"other/three.parquet": b"no parquet"}
    words = ["eval", "--model", "compact", "--split", "all", "--json", "-", "--data"]
    with run_hub(files) as address:
        for name, count in (("data/one.parquet", 40), ("data/*.parquet", 60)):
            done = run([*words, f"hf://datasets/me/faces/{name}"], tmp_path, HF_ENDPOINT=address)
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["n"] == count
        missing = run([*words, "hf://datasets/me/faces/none.parquet"], tmp_path, HF_ENDPOINT=address)
        assert "no file at hf://datasets/me/faces/none.parquet" in missing.stderr
    # From the cache now, with no Hub there.
    again = run([*words, f"hf://datasets/me/faces@{COMMIT}/data/*.parquet"], tmp_path, HF_HUB_OFFLINE="1")
    assert json.loads(again.stdout)["n"] == 60, again.stderr
    gone = run([*words, "hf://datasets/me/others/a.parquet"], tmp_path, HF_HUB_OFFLINE="1")
    assert gone.returncode == 1
    assert "is not at hand and can't be downloaded" in gone.stderr
    assert len(gone.stderr.strip().splitlines()) == 1


def test_by_fsspec(shards, tmp_path):
    address = f"file://{shards[0]}"
    records = load_records(address)
    assert (len(records), records.source) == (40, address)
    assert records.decode(0).shape[2] == 3
    both = load_records(f"file://{shards[0].parent}/*.parquet")
    assert len(both) == 60
    weighed = load_sources([f"{address}::0.5", f"file://{shards[1]}"])
    assert weighed.weights == {"one": 0.5, "two": 1.0}


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("file:///nowhere/at/all.parquet", "is not at hand"),
        ("hf://me/faces/a.parquet", "is no data set on the Hub"),
        ("hf://datasets/me/a.parquet", "is no data set on the Hub"),
        ("s3://bucket/faces.csv", "must be Parquet with the pictures inside"),
        ("s3://bucket/faces.parquet", "needs another package"),
        ("nothing://bucket/faces.parquet", "Protocol not known"),
    ],
)
def test_addresses_that_lead_nowhere(address, reason):
    with pytest.raises(DataError, match=reason) as caught:
        load_records(address)
    assert "\n" not in str(caught.value)
