"""Runs on the Hub: uploaded to a local stand-in, and loaded from it by every command that takes a run."""

import base64
import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import Request, urlopen

import pytest
import yaml
from running import run_service

from agegen.errors import AgegenError
from agegen.model.weights import fetch_hub_run, is_hub_run, parse_repository

pytestmark = pytest.mark.slow

COMMIT = "d" * 40


@contextmanager
def run_hub(files):
    """Run a Hub on loopback that accepts commits and serves their files; ``files`` has their contents by name."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/api/repos/create":
                files["created"] = json.loads(body)
                self._send_json({"url": f"http://{self.headers['Host']}/me/faces"})
            elif "/preupload/" in self.path:
                names = [file["path"] for file in json.loads(body)["files"]]
                plain = {"uploadMode": "regular", "shouldIgnore": False}
                self._send_json({"files": [{"path": name} | plain for name in names]})
            elif "/commit/" in self.path:
                for line in map(json.loads, body.decode().splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                address = f"http://{self.headers['Host']}/me/faces/commit/{COMMIT}"
                self._send_json({"commitUrl": address, "commitOid": COMMIT, "success": True})
            else:
                self._send_json({})

        def do_GET(self):
            self._send_file(body=True)

        def do_HEAD(self):
            self._send_file(body=False)

        def _send_file(self, body):
            match = re.fullmatch(r"/me/faces/resolve/([^/]+)/(.+)", self.path)
            content = files.get(match[2]) if match and match[1] in ("main", COMMIT) else None
            self.send_response(200 if content is not None else 404)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hash(content):x}"')
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if body and content is not None:
                self.wfile.write(content)

        def _send_json(self, content):
            text = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def run(words, home, **env):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings = clean | {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_none"} | env
    command = [sys.executable, "-m", "agegen", *map(str, words)]
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=240, check=False)


def test_a_pushed_run_can_be_loaded_again(trained_run, faces_folder, portrait, tmp_path):
    files = {}
    with run_hub(files) as address:
        done = run(["push", trained_run, "me/faces", "--private"], tmp_path / "a", HF_ENDPOINT=address)
        assert done.returncode == 0, done.stderr
        assert f"--run hf://me/faces@{COMMIT}" in done.stdout
        assert {"model.safetensors", "model.onnx", "config.json", "README.md"} <= set(files)
        assert "private" in str(files["created"].get("visibility", files["created"].get("private") and "private"))
        rows = {}
        for name in ("hf://me/faces", f"hf://me/faces@{COMMIT}"):
            words = ["predict", portrait, "--run", name, "--json", "-"]
            found = run(words, tmp_path / "b", HF_ENDPOINT=address)
            assert found.returncode == 0, found.stderr
            rows[name] = json.loads(found.stdout)
    assert rows["hf://me/faces"] == rows[f"hf://me/faces@{COMMIT}"]
    own = json.loads(run(["predict", portrait, "--run", trained_run, "--json", "-"], tmp_path / "b").stdout)
    assert rows["hf://me/faces"][0]["age"] == pytest.approx(own[0]["age"], abs=0.2)
    # From the cache, without the Hub.
    again = run(["predict", portrait, "--run", "hf://me/faces", "--json", "-", "--offline"], tmp_path / "b")
    assert json.loads(again.stdout) == rows["hf://me/faces"]
    evaluated = run(["eval", "hf://me/faces", "--data", faces_folder, "--split", "all", "--json", "-"], tmp_path / "b")
    assert json.loads(evaluated.stdout)["n"] > 0, evaluated.stderr
    words = ["compare", "hf://me/faces", trained_run, "--data", faces_folder, "--split", "all", "--json", "-"]
    compared = json.loads(run(words, tmp_path / "b").stdout)
    assert [row["name"] for row in compared["runs"]] == ["me/faces", "scratch"]
    mae = next(row for row in compared["age"] if row["metric"] == "mae")["values"]
    assert mae["me/faces"]["value"] == pytest.approx(mae["scratch"]["value"], abs=0.1)
    env = {"HF_HOME": str(tmp_path / "b"), "HF_HUB_OFFLINE": "1"}
    with run_service("--run", "hf://me/faces", **env) as service:
        request = Request(f"{service.address}/v1/faces?model=me/faces", portrait.read_bytes())
        with urlopen(request, timeout=30) as answer:
            assert json.load(answer)[0]["model"] == rows["hf://me/faces"][0]["model"]
    check_card(files["README.md"].decode(), trained_run)


def check_card(card, trained_run):
    block = yaml.safe_load(card.split("---")[1])
    assert (block["library_name"], block["metrics"]) == ("agegen", ["accuracy", "in_bracket", "mae"])
    report = json.loads((trained_run / "eval.json").read_text())
    (entry,) = block["model-index"]
    values = {metric["type"]: metric["value"] for result in entry["results"] for metric in result["metrics"]}
    assert values["mae"] == pytest.approx(report["age"]["mae"])
    assert values["accuracy"] == pytest.approx(report["gender"]["accuracy"])
    assert "# Model card" in card


def test_network_errors_are_one_line(trained_run, tmp_path, portrait):
    done = run(
        ["push", trained_run, "me/faces"], tmp_path, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_DOWNLOAD_TIMEOUT="1"
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot push to me/faces")
    assert len(done.stderr.strip().splitlines()) == 1
    gone = run(["predict", portrait, "--run", "hf://me/faces", "--offline"], tmp_path)
    assert "model.safetensors of me/faces is not in the Hugging Face cache" in gone.stderr
    assert "Traceback" not in gone.stderr


@pytest.mark.parametrize("name", ["faces", "me/faces/more", "../etc/passwd", "me/", "-/x", ""])
def test_invalid_repository_names(name):
    with pytest.raises(AgegenError, match="OWNER/NAME"):
        parse_repository(name)
    with pytest.raises(AgegenError):
        fetch_hub_run(f"hf://{name}")


def test_hub_addresses():
    assert is_hub_run("hf://a/b")
    assert is_hub_run("hf:/a/b")
    assert not is_hub_run("runs/a")
    assert not is_hub_run(None)
