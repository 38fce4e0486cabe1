"""Run folders: what is read from edited and older ones, and files that do not belong to the run."""

import json
import os
import shutil
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from agegen.errors import CheckpointError
from agegen.export.card import render_card
from agegen.files import ABSENT, Schema, find_mismatch
from agegen.predict.estimator import Estimator
from agegen.runs import RunFolder

# What to change in run.json, and what the error says.
EDITS = {
    "options: {}": ({"options": {}}, "'options.batch_size' is missing"),
    "settings: {}": ({"settings": {}}, "'settings.epochs' is missing"),
    "data: {}": ({"data": {}}, "'data.source' is missing"),
    "parameters: {}": ({"parameters": {}}, "'parameters.total' is missing"),
    "counts": ({"data": {"counts": {"train": "many"}}}, "'data.counts.train' is \"many\", not an integer"),
    "counts as text": ({"data": {"counts": "many"}}, "'data.counts' is \"many\", not an object"),
    "best": ({"best": "x"}, "'best' is \"x\", not an object"),
    "no best": ({"best": None}, "'best' is null, not an object"),
    "seconds": ({"seconds": None}, "'seconds' is null, not an object"),
    "number as text": ({"seconds": {"total": "12"}}, "'seconds.total' is \"12\", not a number"),
    "settings.lr": ({"settings": {"lr": float("nan")}}, "'settings.lr' is NaN, not a number"),
    "seed": ({"seed": -5}, "'seed' is -5, below 0"),
    "truth": ({"parameters": {"total": True}}, "'parameters.total' is true, not an integer"),
    "source": ({"data": {"source": [1]}}, "'data.source' is"),
    "huge": ({"settings": {"lr": 10**400}}, "'settings.lr' is 1000"),
    "long": ({"model": ["x" * 5000]}, "'model' is [\"xxx"),
}


def edit(content, changes):
    """Return JSON with changes; an empty object or another value than an object replaces what is there."""
    merged = dict(content)
    for name, value in changes.items():
        merged[name] = edit(content.get(name) or {}, value) if isinstance(value, dict) and value else value
    return merged


def edit_file(path, changes):
    path.write_text(json.dumps(edit(json.loads(path.read_text()), changes)))


@pytest.fixture
def run(trained_run, tmp_path):
    return shutil.copytree(trained_run, tmp_path / "run")


def test_a_split_that_is_not_that_of_the_run_is_refused(run, trained_run, agegen):
    """With the split.csv of another training, faces that the model was trained on would be its test set."""
    text = (run / "split.csv").read_text()
    swapped = text.replace(",train,", ",?,").replace(",test,", ",train,").replace(",?,", ",test,")
    (run / "split.csv").write_text(swapped)
    for command in (["eval", run], ["compare", trained_run, run]):
        done = agegen(*command)
        assert done.exit_code == 1
        assert f"{run / 'split.csv'} is not the split that this training used" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_finished_run_without_its_record_is_not_called_unfinished(run, agegen):
    (run / "run.json").unlink()
    done = agegen("eval", run)
    assert "has no run.json. Restore it, or move best.safetensors out of the folder" in done.stderr


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_record_is_refused_in_one_line(run, tmp_path, agegen, name):
    changes, expected = EDITS[name]
    edit_file(run / "run.json", changes)
    for command in (
        ["export", run, "--weights", tmp_path / "w.safetensors"],
        ["eval", run],
        ["compare", run, "compact"],
        ["train", "--resume", run],
    ):
        done = agegen(*command)
        assert done.exit_code == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: {run / 'run.json'} is damaged: {expected}")
        assert len(line) < 500


# The same for the options that only a resumed run needs.
OPTIONS = {
    "epochs": ("four", '"four", not an integer'),
    "lr": (float("nan"), "NaN, not a number"),
    "seed": (-5, "-5, below 0"),
    "workers": (1.5, "1.5, not an integer"),
    "precision": ("fp61", '"fp61", not one of auto, fp32, bf16'),
    "split_file": (3, "3, not text"),
    "pretrained": ("yes", '"yes", not true or false'),
    "soft_labels": ("x", '"x", not a list'),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_edited_option_is_refused_before_the_data_are_read(run, agegen, name):
    value, expected = OPTIONS[name]
    edit_file(run / "run.json", {"finished": None, "options": {name: value}})
    done = agegen("train", "--resume", run)
    assert done.exit_code == 1
    assert done.stderr == f"error: {run / 'run.json'} is damaged: 'options.{name}' is {expected}\n"


REPORTS = {
    "n": ({"n": "all"}, "'n' is \"all\", not an integer"),
    "metric": ({"age": {"mae": "low"}}, "'age.mae' is \"low\", not a number"),
    "interval": ({"age": {"mae_ci95": [1]}}, "'age.mae_ci95' is [1], not a list of 2"),
    "baseline": ({"baseline": {"age": {"mae": []}}}, "'baseline.age.mae' is [], not a number"),
    "groups": ({"groups": {}}, "'groups' is {}, not a list"),
    "group": ({"groups": [{"column": 3}]}, "'groups.column' is 3, not text"),
}


@pytest.mark.parametrize("name", REPORTS)
def test_an_edited_report_is_refused_in_one_line(run, tmp_path, agegen, name):
    changes, expected = REPORTS[name]
    edit_file(run / "eval.json", changes)
    done = agegen("export", run, "--weights", tmp_path / "w.safetensors")
    assert done.exit_code == 1
    assert done.stderr == f"error: {run / 'eval.json'} is damaged: {expected}\n"


@pytest.mark.parametrize("content", ["[" * 100_000, '{"model": ' * 50_000, "\ud800", '{"n": 1e999}'])
def test_files_that_are_no_record_are_refused(run, content):
    for name, read in (("run.json", RunFolder(run).read), ("eval.json", RunFolder(run).read_evaluation)):
        (run / name).write_text(content, errors="surrogatepass")
        with pytest.raises(CheckpointError, match=rf"{name} is damaged: ") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_records_of_older_versions_are_read(run):
    """Without what the first versions did not write yet, and with what later ones may add."""
    record = json.loads((run / "run.json").read_text())
    for name in ("teachers", "start", "command", "resumed", "sha256"):
        record.pop(name, None)
    kept = ("source", "faces", "fingerprint", "excluded")
    record["data"] = {name: record["data"][name] for name in kept}
    record["options"] = {name: record["options"][name] for name in ("model", "data", "batch_size", "seed")}
    record["seconds"] = {"total": 12, "epochs": 10}
    (run / "run.json").write_text(json.dumps({**record, "later": {"more": 1}}))
    report = json.loads((run / "eval.json").read_text())
    for name in ("counts", "bracket", "interval", "confident"):
        del report[name]
    (run / "eval.json").write_text(json.dumps(report))
    assert RunFolder(run).read()["later"] == {"more": 1}
    assert "480 faces" in render_card(RunFolder(run), run / "best.safetensors")


def test_a_damaged_newest_run_is_not_skipped_silently(trained_run, agegen):
    shutil.copytree(trained_run, "runs/older")
    newest = shutil.copytree(trained_run, Path("runs/newest"))
    (newest / "run.json").write_text("{")
    done = agegen("eval")
    assert done.exit_code == 0
    assert "the run runs/newest is left out: runs/newest/run.json is damaged: Expecting" in done.stderr
    assert "older is off by" in done.stdout
    # Damaged before the older one was finished: nobody expects it to be evaluated.
    os.utime(newest / "run.json", (0, 0))
    assert "is left out" not in agegen("eval").stderr
    done = agegen("compare")
    assert "two different finished runs" in done.stderr
    shutil.rmtree("runs/older")
    done = agegen("eval")
    assert done.exit_code == 1
    assert "no finished run under runs/. the run runs/newest is left out: runs/newest/run.json is" in done.stderr


def scale_weights(path, factor):
    tensors = load_file(path)
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    floats = {name: tensor * np.float32(factor) for name, tensor in tensors.items() if tensor.dtype == np.float32}
    save_file(tensors | floats, path, metadata)


def test_weights_that_are_not_those_of_the_run_are_refused(run, trained_run, tmp_path, agegen):
    """Even if they are sound, eval and compare would report the metrics of two models for one run."""
    other = tmp_path / "other.safetensors"
    shutil.copy(run / "best.safetensors", other)
    scale_weights(other, 0.5)
    shutil.copy(other, run / "best.safetensors")
    for command in (
        ["eval", run],
        ["compare", trained_run, run],
        ["export", run, "--weights", tmp_path / "w.safetensors"],
        ["export", run, "--onnx", tmp_path / "w.onnx"],
        ["predict", "--demo", "--run", run],
        ["calibrate", run, "--data", "demo"],
        ["train", "--model", "scratch", "--data", "demo", "--init", run],
    ):
        done = agegen(*command)
        assert done.exit_code == 1
        assert f"{run / 'best.safetensors'} is not the file that this training wrote: its SHA-256 is" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    # Alone, or in a run of an older version, which did not store the hash, they are used.
    assert agegen("predict", "--demo", "--run", other).exit_code == 0
    record = json.loads((run / "run.json").read_text())
    del record["sha256"]
    (run / "run.json").write_text(json.dumps(record))
    done = agegen("predict", "--demo", "--run", run)
    assert done.exit_code == 0
    # The ONNX file is that of the other weights.
    assert "best.onnx was not exported from" in done.stderr
    assert f"Run `agegen export {run} --onnx {run / 'best.onnx'}` again." in done.stderr
    assert "(using torch with best.safetensors instead)" in done.stderr


def test_predictions_of_other_weights_are_not_compared(run, trained_run, agegen):
    table = pd.read_parquet(run / "predictions.parquet")
    table.assign(estimated_age=table["estimated_age"] + 5).to_parquet(run / "predictions.parquet")
    done = agegen("compare", trained_run, run)
    assert done.exit_code == 1
    assert f"{run / 'predictions.parquet'} is not the file that this training wrote" in done.stderr


@pytest.mark.slow
def test_weights_without_finite_outputs_are_refused_in_one_line(run, tmp_path, agegen):
    alone = tmp_path / "alone.safetensors"
    shutil.copy(run / "best.safetensors", alone)
    scale_weights(alone, 1e30)
    with pytest.raises(CheckpointError, match=r"invalid outputs from .*alone\.safetensors: NaN or infinite"):
        Estimator.load(run=alone)
    for command in (
        ["predict", "--demo", "--run", alone],
        ["eval", alone, "--data", "demo", "--split", "all"],
        ["calibrate", alone, "--data", "demo"],
    ):
        done = agegen(*command)
        assert done.exit_code == 1
        assert "NaN or infinite" in done.stderr.splitlines()[-1]


def test_a_damaged_onnx_file_gets_a_notice(run, agegen):
    content = (run / "best.onnx").read_bytes()
    (run / "best.onnx").write_bytes(content[: len(content) // 2])
    done = agegen("predict", "--demo", "--run", run)
    assert done.exit_code == 0
    assert "best.onnx is damaged or not an ONNX file" in done.stderr
    assert "(using torch with best.safetensors instead)" in done.stderr
    (run / "best.onnx").unlink()
    assert "onnx" not in agegen("predict", "--demo", "--run", run).stderr


EPOCHS = ["", "epoch\n1\n", "epoch,train_loss\n", "\x00\x01", None]


@pytest.mark.parametrize("content", EPOCHS)
def test_damaged_epochs_are_refused_in_one_line(run, content):
    whole = (run / "epochs.csv").read_text()
    (run / "epochs.csv").write_text(whole.replace(",", ",x", 3) if content is None else content)
    with pytest.raises(CheckpointError, match=r"epochs\.csv") as caught:
        RunFolder(run).read_epochs()
    assert "\n" not in str(caught.value)


def test_literals_and_nested_lists_are_compared():
    assert find_mismatch({"a": [[1, "x"]]}, dict[str, list[list[int]]], "f") == "'f.a' is \"x\", not an integer"
    assert find_mismatch(3, int | None) is None
    assert find_mismatch([], int) == "it is [], not an integer"
    assert find_mismatch([1, "x"], tuple[int, str]) is None
    assert find_mismatch([1, 2], tuple[int, str], "f") == "'f' is 2, not text"


def test_deep_nesting_is_refused_at_any_depth(tmp_path):
    """Near the limit of recursion, a file can be parsed, but its content not be shown."""
    for depth in range(900, 1000):
        (tmp_path / "run.json").write_text('{"data": {"counts": {"a": %s}}}' % ("[" * depth + "]" * depth))
        with pytest.raises(CheckpointError, match=r"run\.json is damaged: ") as caught:
            RunFolder(tmp_path).read()
        assert str(caught.value).isprintable()


def test_only_closed_schemas_refuse_other_entries():
    class Open(Schema):
        a: int = ABSENT

    class Closed(Schema, others=None):
        a: int
        b: Annotated[dict[str, int], Open] = ABSENT

    assert find_mismatch({"c": 1}, Open) is None
    assert find_mismatch({"a": 1, "b": {"c": 1}}, Closed) is None
    assert find_mismatch({"a": 1, "c\x1b": 1}, Closed) == "'c?' is unknown"
    assert find_mismatch({}, Closed, "f") == "'f.a' is missing"
    assert find_mismatch({"a": 1, "b": {"a": "x"}}, Closed) == "'b.a' is \"x\", not an integer"
