"""Predictions as Parquet shards: computed by this process, and by Ray workers, one of which is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from agegen.errors import AgegenError
from agegen.predict.config import PredictConfig
from agegen.predict.inputs import Shard
from agegen.predict.shards import ShardActor, ShardFolder, name_shard, run_on_cluster


@pytest.fixture(scope="module")
def table(tmp_path_factory, faces_folder):
    """Parquet with 60 faces, one of them damaged, in 15 row groups."""
    paths = sorted(faces_folder.iterdir())
    contents = [path.read_bytes() for path in paths]
    contents[7] = b"not an image"
    path = tmp_path_factory.mktemp("table") / "faces.parquet"
    names = [one.name for one in paths]
    pq.write_table(pa.table({"path": names, "image": pa.array(contents, pa.binary())}), path, row_group_size=4)
    return path


def read_rows(folder):
    return pyarrow.dataset.dataset(str(folder)).to_table().to_pylist()


@pytest.fixture(scope="module")
def expected(table, agegen, tmp_path_factory):
    """The rows of the same images in JSON."""
    result = agegen("predict", table, "--no-detect", "--json", "-")
    assert result.exit_code == 1
    return {row["file"]: row for row in json.loads(result.stdout)}


def check_rows(rows, expected):
    assert len(rows) == len(expected) == 60
    for row in rows:
        wanted = expected[row["file"]]
        assert row["status"] == wanted["status"]
        if row["status"] == "ok":
            # Batches of different sizes are summed in a different order.
            assert row["age"] == pytest.approx(wanted["age"], abs=0.11)
            assert row["p_female"] == pytest.approx(wanted["p_female"], abs=2e-3)
            assert row["model"] == wanted["model"]
        else:
            assert row["reason"] == wanted["reason"]


def test_shards(table, expected, agegen, tmp_path):
    out = tmp_path / "out"
    result = agegen("predict", table, "--no-detect", "--parquet", out)
    assert result.exit_code == 1
    assert "59 faces in 60 photos" in result.stderr
    assert result.stdout == ""
    assert sorted(path.name for path in out.iterdir()) == ["_job.json", *map(name_shard, range(15))]
    check_rows(read_rows(out), expected)
    origin = json.loads(pq.read_schema(out / name_shard(3)).metadata[b"agegen"])
    assert origin["model"] == "compact"
    assert len(origin["checkpoint"]) == 64
    assert {"file", "age", "left", "bottom", "p_female"} <= set(pq.read_schema(out / name_shard(3)).names)


def test_resume_computes_the_missing_shards(table, expected, agegen, tmp_path):
    out = tmp_path / "out"
    agegen("predict", table, "--no-detect", "--parquet", out)
    again = agegen("predict", table, "--no-detect", "--parquet", out)
    assert again.exit_code == 1
    assert "already contains shards. Add --resume" in again.stderr
    for number in (2, 9):
        (out / name_shard(number)).unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    done = agegen("predict", table, "--no-detect", "--parquet", out, "--resume")
    assert "continuing after 52 of 60 inputs" in done.stderr
    check_rows(read_rows(out), expected)
    assert all((out / name).stat().st_mtime_ns == when for name, when in kept.items())
    other = agegen("predict", table, "--no-detect", "--parquet", out, "--resume", "--model", "scratch")
    assert "its shards have a different model" in other.stderr


def test_extra_columns_and_files(faces_folder, agegen, tmp_path):
    out = tmp_path / "out"
    words = ("--no-detect", "--parquet", out, "--under", 18, "--distribution")
    assert agegen("predict", faces_folder, *words).exit_code == 0
    rows = read_rows(out)
    assert len(rows) == 60
    assert len(rows[0]["distribution"]) == 117
    assert 0 <= rows[0]["under_18"] <= 1
    assert "under=18" in rows[0]["options"]


def test_a_missing_file_is_an_unreadable_row(agegen):
    done = agegen("predict", "nowhere.jpg", "--no-detect", "--parquet", "out")
    assert done.exit_code == 1
    assert "0 faces in 1 photo, 0 without a face, 1 unreadable" in done.stderr
    assert [row["status"] for row in read_rows("out")] == ["unreadable"]


def test_a_list_on_stdin_to_an_address(faces_folder, tmp_path):
    names = "\n".join(str(path) for path in sorted(faces_folder.iterdir())[:5])
    words = ["predict", "-", "--no-detect", "--parquet", f"file://{tmp_path}/out"]
    done = subprocess.run([sys.executable, "-m", "agegen", *words], input=names, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert len(read_rows(tmp_path / "out")) == 5


def test_a_remote_folder():
    folder = ShardFolder("memory://out")
    assert folder.prepare({"model": "a"}, resume=False) == set()
    folder.write(4, pa.table({"age": [1]}))
    assert folder.prepare({"model": "a"}, resume=True) == {4}
    with pytest.raises(AgegenError, match="its shards have a different model"):
        folder.prepare({"model": "b"}, resume=True)
    fsspec.filesystem("memory").rm("/out", recursive=True)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--cluster", "local"], "--cluster requires --parquet OUT"),
        (["--parquet", "out", "--csv", "a.csv"], "--parquet cannot be combined with --csv"),
        (["--parquet", "nothing://out"], "Protocol not known"),
        (["--parquet", "out", "--cluster", "127.0.0.1:1"], "cannot connect to the Ray cluster at 127.0.0.1:1"),
    ],
)
def test_invalid_options_are_reported_in_one_line(agegen, faces_folder, words, reason):
    done = agegen("predict", faces_folder, "--no-detect", *words)
    assert done.exit_code == 1
    assert reason in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def list_actors():
    """Return the process IDs of the Ray workers that have loaded a model."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if b"MapWorker" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_shards_of_a_killed_worker_are_computed_again(table, expected, tmp_path):
    out = tmp_path / "out"
    words = ["predict", table, "--no-detect", "--parquet", out, "--cluster", "local"]
    command = [sys.executable, "-m", "agegen", *map(str, words)]
    # Each worker requires a core; tests are limited to one.
    env = os.environ | {"RAY_OVERRIDE_RESOURCES": '{"CPU": 2}'}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
    deadline = time.monotonic() + 120
    while not (out / name_shard(0)).exists() and not list(out.glob("part-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    actors = list_actors()
    assert len(actors) == 2
    os.kill(actors[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 1, errors
    assert "59 faces in 60 photos" in errors
    assert "Traceback" not in errors
    check_rows(read_rows(out), expected)


@pytest.mark.slow
def test_a_worker_that_cannot_load_is_reported_once(tmp_path):
    config = PredictConfig(("a",), model="nothing", detector="none", parquet=str(tmp_path / "out"), cluster="local")
    shards = {number: Shard(1, ("a.jpg",)) for number in range(3)}
    with pytest.raises(AgegenError, match=r"a worker on \S+ cannot start: .*nothing") as caught:
        list(run_on_cluster(config, shards))
    assert "\n" not in str(caught.value)


def test_a_worker_without_agegen_is_reported(tmp_path):
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[ShardActor.__module__])
    (tmp_path / "actor").write_bytes(cloudpickle.dumps(ShardActor))
    code = """
import pickle, sys
sys.modules["agegen"] = None
actor = pickle.load(open("actor", "rb"))({"run": None, "boxes": None})
print(actor({"number": 3}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "'number': 3" in done.stdout, done.stderr
    assert "cannot start: ModuleNotFoundError" in done.stdout
