"""Every command as a user runs it, and one way through all of them."""

import io
import json
import re

import pandas as pd
import pytest

from agegen.errors import format_count
from agegen.render.progress import EscapingConsole, ProgressDisplay
from agegen.render.tables import PlainTable, render_table, shorten_path


def write_manifest(folder, path):
    names = sorted(face.name for face in folder.iterdir())
    splits = ["train" if index % 10 < 4 else "val" if index % 10 < 6 else "test" for index in range(len(names))]
    rows = [
        f"data/{name},{name.split('_')[0]},{name.split('_')[1]},{split}\n"
        for name, split in zip(names, splits, strict=True)
    ]
    path.write_text("path,age,gender,split\n" + "".join(rows))
    return path


@pytest.mark.slow
@pytest.mark.usefixtures("random_vgg16")
def test_train_eval_predict_compare(agegen, draw_folder, faces_folder, tmp_path):
    data = write_manifest(draw_folder(tmp_path / "data", 100), tmp_path / "faces.csv")
    small = ("--data", data, "--epochs", "2", "--batch-size", "32", "--workers", "0")
    done = agegen("train", "--model", "scratch", *small)
    assert done.exit_code == 0
    run = tmp_path / done.stdout.strip().splitlines()[-1]
    assert (run / "best.safetensors").is_file()
    assert "epoch   2/2" in done.stdout

    done = agegen("train", "--model", "vgg16", *small, "--split-file", run / "split.csv")
    assert done.exit_code == 0
    other = tmp_path / done.stdout.strip().splitlines()[-1]
    assert "vgg16" in other.name

    done = agegen("eval", run, "--json", "-", "--predictions", tmp_path / "rows.csv")
    report = json.loads(done.stdout)
    stored = json.loads((run / "eval.json").read_text())
    assert report == stored
    assert len(pd.read_csv(tmp_path / "rows.csv")) == report["n"]

    done = agegen("predict", "--detector", "none", faces_folder, "--run", run, "--json", "-")
    assert done.exit_code == 0
    assert len(json.loads(done.stdout)) == 60

    done = agegen("compare", "--json", tmp_path / "c.json", "--report", tmp_path / "c.html")
    assert done.exit_code == 0
    assert "Table 1: age" in done.stdout
    assert "Table 3: cost" in done.stdout
    assert json.loads((tmp_path / "c.json").read_text())["n"] == report["n"]
    assert (tmp_path / "c.html").read_text().startswith("<!doctype html>")

    listed = agegen("cache")
    assert "timm/vgg16.tv_in1k" in listed.stdout
    assert "freed" in agegen("cache", "--clear").stdout
    assert "timm/vgg16.tv_in1k" not in agegen("cache").stdout


def test_eval_json_has_the_documented_form(trained_run, agegen):
    report = json.loads(agegen("eval", trained_run, "--json", "-").stdout)
    assert set(report) == {"n", "counts", "age", "bracket", "gender", "interval", "confident", "groups", "baseline"}
    assert 0 <= report["interval"]["coverage"] <= 1
    assert report["interval"]["width"] > 0
    assert 0.5 <= report["confident"]["min_confidence"] <= 1
    assert {"named", "named_ci95", "named_accuracy"} <= set(report["confident"])
    assert all("coverage" in group["interval"] for group in report["groups"])
    assert {"mae", "mae_ci95", "rmse", "cs3", "cs5", "cs10"} <= set(report["age"])
    assert {"accuracy", "accuracy_ci95", "roc_auc", "ece", "brier"} <= set(report["gender"])
    assert report["counts"] == {"age": report["n"], "bracket": 0, "gender": report["n"]}
    assert report["bracket"]["in_bracket"] is None
    low, high = report["age"]["mae_ci95"]
    assert low < report["age"]["mae"] < high
    assert report["baseline"]["age"]["mae"] > 0
    columns = {group["column"] for group in report["groups"]}
    assert columns == {"age_band", "gender", "estimated_age"}
    for column in columns:
        assert sum(group["n"] for group in report["groups"] if group["column"] == column) == report["n"]
    assert all(group["small"] == (group["n"] < 30) for group in report["groups"])


def test_eval_on_other_data(trained_run, faces_folder, agegen):
    done = agegen("eval", trained_run, "--data", faces_folder, "--split", "all", "--json", "-")
    report = json.loads(done.stdout)
    assert report["n"] == 60
    assert {group["column"] for group in report["groups"]} == {"age_band", "gender", "race", "estimated_age"}
    done = agegen("eval", trained_run, "--data", faces_folder, "--json", "-")
    # Without --split: the faces that the training has not used.
    left_out = re.search(r"(\d+) faces left out", done.stderr)
    assert json.loads(done.stdout)["n"] == 60 - (int(left_out[1]) if left_out else 0)


def test_eval_takes_the_newest_run(trained_run, agegen, tmp_path):
    (tmp_path / "runs").symlink_to(trained_run.parent)
    assert "MAE (years)" in agegen("eval").stdout


def test_eval_names_an_interrupted_training(agegen, tmp_path):
    (tmp_path / "runs" / "half").mkdir(parents=True)
    (tmp_path / "runs" / "half" / "state-1.safetensors").touch()
    assert "Finish one with `agegen train --resume runs/half`." in " ".join(agegen("eval").stderr.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "no-run"], "no run at no-run"),
        (["eval"], "no finished run under runs/"),
        (["eval", "--model", "vgg17"], "unknown backbone 'vgg17'"),
        (["predict", "nothing-*.jpg"], "no images in nothing-"),
        (["predict", "face.jpg", "--json", "-", "--csv", "-"], "can write to stdout"),
        (["predict"], "or --demo"),
        (["predict", "-", "face.jpg"], "- cannot be combined with other inputs"),
        (["predict", "face.jpg", "--resume"], "--resume requires exactly one output"),
        (["predict", "face.jpg", "--resume", "--json", "x.json"], "--resume requires exactly one output"),
        (["predict", "face.jpg", "--min-confidence", "0.3"], "--min-confidence must be between 0.5 and 1"),
        (["compare"], "at least two different finished runs, not 0"),
        (["train", "--model", "scratch"], "--data demo"),
        (["train", "--model", "resnet", "--data", "demo"], "unknown backbone 'resnet'"),
    ],
)
def test_mistakes_are_one_line_on_stderr(agegen, arguments, message):
    done = agegen(*arguments)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert message in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_other_names_of_options_are_suggested(agegen):
    assert "Possible options: --min-confidence" in agegen("predict", "a.jpg", "--threshold", "0.9").stderr
    assert "--min-confidence" not in agegen("serve", "--threshold", "0.9").stderr


def test_every_command_has_help_with_an_example(agegen):
    for command in ("train", "eval", "predict", "compare", "models", "cache", "export"):
        done = agegen(command, "--help")
        assert done.exit_code == 0
        assert "Example: agegen" in done.stdout


def test_names_are_printed_as_they_are(agegen, tmp_path):
    folder = tmp_path / "[red]:smile:"
    assert str(folder) in agegen("cache", "--cache-dir", folder).stdout
    assert str(folder) in agegen("cache", "--cache-dir", folder, "--clear").stdout


def test_control_characters_are_printed_as_escapes(agegen, tmp_path, draw_folder):
    """In groups, in names of files, in notices and in errors."""
    folder = draw_folder(tmp_path / "faces", 6)
    names = sorted(path.name for path in folder.iterdir())
    (folder / names[0]).rename(folder / "a\x1b[31m\u202e.png")
    faces = enumerate(["a\x1b[31m\u202e.png", *names[1:]])
    rows = [f"{name},{20 + number},f,x\x1b[2J\x9b1m" for number, name in faces]
    table = folder / "b\x1b]0;title\x07.csv"
    table.write_text("path,age,gender,place\n" + "\n".join([*rows, "gone\x1b[1m.png,5,f,y"]) + "\n")
    out = tmp_path / "o\x1b[1m.csv"
    for arguments in (("data", "check", table), ("data", "convert", table, out), ("data", "check", "\x1b[5m")):
        done = agegen(*arguments)
        shown = done.stdout + done.stderr
        assert "\\x1b" in shown
        assert not set("\x1b\x07\x9b\u202e") & set(shown), arguments


def test_a_line_break_in_a_name_does_not_start_a_line_of_its_own(agegen):
    done = agegen("data", "check", "a\nerror: all is lost")
    assert done.stderr.count("\n") == 1
    assert r"a\nerror" in done.stderr


def test_progress_in_logs_is_a_line_every_half_minute(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("agegen.render.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    with ProgressDisplay(EscapingConsole(file=stream)) as progress:
        for done in range(100):
            progress("reading images", done, 2000)
            now[0] += 1
        progress.update("predicting", 7, None, "3.0 photos/s")
    assert stream.getvalue().splitlines() == [
        *(f"reading images: {done} of 2,000 ({done // 20} %)" for done in (30, 60, 90)),
    ]


def test_long_paths_in_tables_stay_on_one_line():
    path = "/a/folder/of/a/user/with/a/long/name/and/many/parts/photo-0017.jpg"
    reason = "the labels of this face contradict those of its near-duplicate by more than a year"
    stream = io.StringIO()
    console = EscapingConsole(file=stream, width=100)
    table = PlainTable("", ["first", "second", "reason"], [[path, f"my photos{path}", reason]], left=3)
    console.print(render_table(table))
    shown = stream.getvalue()
    assert shown.count("/photo-0017.jpg") == 2
    assert (shown.count("/a/folder"), shown.count("my photos/"), shown.count("…")) == (1, 1, 2)
    assert "contradict" in shown
    assert shorten_path(path, 40) == "/a/folder/of/…" + path[-26:]


@pytest.mark.parametrize("width", [200, 120, 90, 70, 40])
def test_numbers_in_tables_are_never_broken(width):
    values = ["4.71 (4.50–4.93)", "-0.0131 (-0.0580 to +0.0279)", "1,234,567"]
    columns = ["metric", "a model", "the difference of two models (95 %)", "parameters, trained"]
    rows = [["age, 5 faces", "", "", ""], ["mean absolute error (years)", *values]]
    stream = io.StringIO()
    table = PlainTable("", columns, rows, headings=frozenset([0]))
    EscapingConsole(file=stream, width=width).print(render_table(table))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    # Too narrow for its columns, the table lists the cells, each under the name of its row.
    listed = table.measure_width(wrap_names=True) > width
    assert listed == (width < 80)
    for value in values:
        assert sum(value in line for line in lines) == 1
    assert any(values[0] in line and values[1] in line for line in lines) != listed


@pytest.mark.parametrize(("number", "text"), [(0, "0 faces"), (1, "1 face"), (2, "2 faces"), (1200, "1,200 faces")])
def test_numbers_agree_with_their_nouns(number, text):
    assert format_count(number, "face") == text


def test_a_written_report_is_confirmed(agegen, draw_folder, tmp_path):
    done = agegen("data", "check", draw_folder(tmp_path / "faces", 6), "--report", tmp_path / "check.html")
    assert f"report: {tmp_path / 'check.html'}" in done.stderr


def test_version(agegen):
    from agegen import __version__

    assert agegen("--version").stdout.strip() == f"agegen {__version__}"


def test_an_output_folder_in_use_is_refused(agegen, trained_run):
    done = agegen("train", "--model", "scratch", "--data", "demo", "--out", trained_run)
    assert done.exit_code == 1
    assert "is not empty. Choose another --out" in done.stderr
