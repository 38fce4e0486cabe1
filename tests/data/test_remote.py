"""Datasets at a URL: on a local imitation of the Hub, and through fsspec."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from serving import COMMIT, serve_hub

from agegen.data.loading import load_records, load_sources
from agegen.errors import DataError
from agegen.hub import go_offline


def list_answers(files):
    """Return a Hub's answers for the dataset me/faces at one revision: its list of files, and each file."""
    listed = [{"rfilename": name} for name in files]
    about = {"id": "me/faces", "sha": COMMIT, "siblings": listed, "private": False, "tags": []}
    content = json.dumps(about | {"disabled": False, "downloads": 0, "likes": 0}).encode()
    tree = [{"type": "file", "path": name, "size": len(one), "oid": "0"} for name, one in files.items()]
    return {
        "/api/datasets/me/faces/revision/main": content,
        f"/api/datasets/me/faces/tree/{COMMIT}": json.dumps(tree).encode(),
        **{f"/datasets/me/faces/resolve/{COMMIT}/{name}": one for name, one in files.items()},
    }


@pytest.fixture(scope="module")
def shards(tmp_path_factory, faces_folder):
    """Drawn faces in two Parquet files that contain the images."""
    from agegen.datatools.convert import ConvertConfig, convert_data

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


@pytest.mark.slow
def test_from_the_hub(shards, tmp_path):
    files = {f"data/{path.name}": path.read_bytes() for path in shards} | {"other/three.parquet": b"not Parquet"}
    words = ["eval", "--model", "compact", "--split", "all", "--json", "-", "--data"]
    with serve_hub(list_answers(files)) as (address, _):
        for name, count in (("data/one.parquet", 40), ("data/*.parquet", 60)):
            done = run([*words, f"hf://datasets/me/faces/{name}"], tmp_path, HF_ENDPOINT=address)
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["n"] == count
        missing = run([*words, "hf://datasets/me/faces/none.parquet"], tmp_path, HF_ENDPOINT=address)
        assert "no file at hf://datasets/me/faces/none.parquet" in missing.stderr
    # From the cache, without the Hub.
    again = run([*words, f"hf://datasets/me/faces@{COMMIT}/data/*.parquet"], tmp_path, HF_HUB_OFFLINE="1")
    assert json.loads(again.stdout)["n"] == 60, again.stderr
    gone = run([*words, "hf://datasets/me/others/a.parquet"], tmp_path, HF_HUB_OFFLINE="1")
    assert gone.returncode == 1
    assert "is not cached and cannot be downloaded" in gone.stderr
    assert len(gone.stderr.strip().splitlines()) == 1


def test_by_fsspec(shards, tmp_path):
    address = f"file://{shards[0]}"
    records = load_records(address)
    assert (len(records), records.source) == (40, address)
    assert records.decode(0).shape[2] == 3
    both = load_records(f"file://{shards[0].parent}/*.parquet")
    assert len(both) == 60
    weighted = load_sources([f"{address}::0.5", f"file://{shards[1]}"])
    assert weighted.weights == {"one": 0.5, "two": 1.0}


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("file:///nowhere/at/all.parquet", "is not cached"),
        ("hf://me/faces/a.parquet", "invalid address of a dataset"),
        ("hf://datasets/me/a.parquet", "invalid address of a dataset"),
        ("s3://bucket/faces.csv", "must be Parquet files that contain the images"),
        ("s3://bucket/faces.parquet", "requires another package"),
        ("nothing://bucket/faces.parquet", "Protocol not known"),
    ],
)
def test_invalid_addresses_are_one_line(address, reason):
    with pytest.raises(DataError, match=reason) as caught:
        load_records(address)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["s3://bucket/faces.parquet", "http://127.0.0.1:1/faces.parquet"])
def test_offline_forbids_all_addresses(monkeypatch, address):
    for name in ("HF_HUB_OFFLINE", "AGEGEN_OFFLINE"):
        monkeypatch.setenv(name, "1")
    go_offline()
    with pytest.raises(DataError, match="--offline forbids network access"):
        load_records(address)
