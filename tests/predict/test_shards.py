"""Predictions as Parquet shards: by this process, and by Ray's workers, one of which is killed."""

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
    """Parquet with 60 faces, one of them broken, in 15 row groups."""
    paths = sorted(faces_folder.iterdir())
    contents = [path.read_bytes() for path in paths]
    contents[7] = b"no picture"
    path = tmp_path_factory.mktemp("table") / "faces.parquet"
    names = [one.name for one in paths]
    pq.write_table(pa.table({"path": names, "image": pa.array(contents, pa.binary())}), path, row_group_size=4)
    return path


def read_rows(folder):
    return pyarrow.dataset.dataset(str(folder)).to_table().to_pylist()


@pytest.fixture(scope="module")
def expected(table, agegen, tmp_path_factory):
    """The rows that CSV has of the same pictures."""
    result = agegen("predict", table, "--no-detect", "--json", "-")
    assert result.exit_code == 1
    return {row["file"]: row for row in json.loads(result.stdout)}


def check_rows(rows, expected):
    assert len(rows) == len(expected) == 60
    for row in rows:
        wanted = expected[row["file"]]
        assert row["status"] == wanted["status"]
        if row["status"] == "ok":
            # Batches of other sizes add up in another order.
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
    about = json.loads(pq.read_schema(out / name_shard(3)).metadata[b"agegen"])
    assert about["model"] == "compact"
    assert len(about["checkpoint"]) == 64
    assert {"file", "age", "left", "bottom", "p_female"} <= set(pq.read_schema(out / name_shard(3)).names)


def test_what_is_missing_is_made(table, expected, agegen, tmp_path):
    out = tmp_path / "out"
    agegen("predict", table, "--no-detect", "--parquet", out)
    again = agegen("predict", table, "--no-detect", "--parquet", out)
    assert again.exit_code == 1
    assert "has shards already; go on with --resume" in again.stderr
    for number in (2, 9):
        (out / name_shard(number)).unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    done = agegen("predict", table, "--no-detect", "--parquet", out, "--resume")
    assert "52 files already processed" in done.stderr
    check_rows(read_rows(out), expected)
    assert all((out / name).stat().st_mtime_ns == when for name, when in kept.items())
    other = agegen("predict", table, "--no-detect", "--parquet", out, "--resume", "--model", "scratch")
    assert "holds other work (model differs)" in other.stderr


def test_further_columns_and_files(faces_folder, agegen, tmp_path):
    out = tmp_path / "out"
    words = ("--no-detect", "--parquet", out, "--under", 18, "--distribution")
    assert agegen("predict", faces_folder, *words).exit_code == 0
    rows = read_rows(out)
    assert len(rows) == 60
    assert len(rows[0]["distribution"]) == 117
    assert 0 <= rows[0]["under_18"] <= 1
    assert "under=18" in rows[0]["options"]


def test_one_that_is_not_there_is_told(agegen):
    done = agegen("predict", "nowhere.jpg", "--no-detect", "--parquet", "out")
    assert done.exit_code == 1
    assert "0 faces in 1 photos, 0 without a face, 1 unreadable" in done.stderr
    assert [row["status"] for row in read_rows("out")] == ["unreadable"]


def test_a_list_on_stdin_and_an_address(faces_folder, tmp_path):
    names = "\n".join(str(path) for path in sorted(faces_folder.iterdir())[:5])
    words = ["predict", "-", "--no-detect", "--parquet", f"file://{tmp_path}/out"]
    done = subprocess.run([sys.executable, "-m", "agegen", *words], input=names, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert len(read_rows(tmp_path / "out")) == 5


def test_at_an_address():
    folder = ShardFolder("memory://out")
    assert folder.begin({"model": "a"}, resume=False) == set()
    folder.write(4, pa.table({"age": [1]}))
    assert folder.begin({"model": "a"}, resume=True) == {4}
    with pytest.raises(AgegenError, match="other work"):
        folder.begin({"model": "b"}, resume=True)
    fsspec.filesystem("memory").rm("/out", recursive=True)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--cluster", "local"], "give --parquet OUT"),
        (["--parquet", "out", "--csv", "a.csv"], "--parquet cannot be combined with --csv"),
        (["--parquet", "out", "--annotate", "boxes"], "--parquet cannot be combined with --annotate"),
        (["--parquet", "nothing://out"], "Protocol not known"),
        (["--parquet", "out", "--cluster", "127.0.0.1:1"], "no Ray cluster at 127.0.0.1:1"),
    ],
)
def test_words_that_contradict(agegen, faces_folder, words, reason):
    done = agegen("predict", faces_folder, "--no-detect", *words)
    assert done.exit_code == 1
    assert reason in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def list_actors():
    """Return the processes of Ray's workers that hold a model."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if b"MapWorker" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def test_a_worker_is_killed_in_the_midst(table, expected, tmp_path):
    out = tmp_path / "out"
    words = ["predict", table, "--no-detect", "--parquet", out, "--cluster", "local"]
    command = [sys.executable, "-m", "agegen", *map(str, words)]
    # Workers get a core each; tests are kept to one.
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
    _, told = process.communicate(timeout=180)
    assert process.returncode == 1, told
    assert "59 faces in 60 photos" in told
    assert "Traceback" not in told
    check_rows(read_rows(out), expected)


def test_a_worker_that_can_not_load_says_so_once(tmp_path):
    config = PredictConfig(("a",), model="nothing", detector="none", parquet=str(tmp_path / "out"), cluster="local")
    shards = {number: Shard(1, ("a.jpg",)) for number in range(3)}
    with pytest.raises(AgegenError, match=r"a worker on \S+ can't begin: .*nothing") as caught:
        list(run_on_cluster(config, shards))
    assert "\n" not in str(caught.value)


def test_a_worker_without_agegen_says_so(tmp_path):
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
    assert "can't begin: ModuleNotFoundError" in done.stdout
