"""``agegen predict`` as a user runs it."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from holding import restore_ctrl_c
from PIL import Image

from agegen.predict.annotation import find_base, place_copy


@pytest.fixture
def folder(portrait, tmp_path):
    """A portrait, one in a subfolder, a picture without a face, a broken file and a text."""
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    shutil.copy(portrait, root / "1.jpg")
    Image.open(portrait).convert("RGB").save(root / "sub" / "2.webp")
    Image.new("RGB", (300, 200), "green").save(root / "3.png")
    (root / "4.jpg").write_bytes(b"broken")
    (root / "notes.txt").touch()
    return root


def test_table(agegen, trained_run, folder):
    done = agegen("predict", folder, "--run", trained_run)
    assert done.exit_code == 1
    for text in ("90 % interval", "faces: mtcnn", "no_face", "unreadable: not a readable image", "webp"):
        assert text in done.stdout
    assert "2 faces in 4 photos, 1 without a face, 1 unreadable" in done.stderr
    assert agegen("predict", folder / "1.jpg", "--run", trained_run).exit_code == 0


def test_json_rows(agegen, trained_run, folder):
    done = agegen("predict", folder, "--run", trained_run, "--json", "-")
    rows = json.loads(done.stdout)
    assert [row["status"] for row in rows] == ["ok", "no_face", "unreadable", "ok"]
    assert 0 <= rows[0]["age_low"] <= rows[0]["age"] <= rows[0]["age_high"] <= 116
    assert rows[0]["gender"] in ("female", "male", "uncertain")
    assert rows[2]["reason"].startswith("not a readable image")
    assert done.exit_code == 1


def test_csv_and_json_lines_say_the_same(agegen, trained_run, folder, tmp_path):
    agegen("predict", folder, "--run", trained_run, "--jsonl", tmp_path / "o.jsonl", "--csv", tmp_path / "o.csv")
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "o.csv").read_text())))
    assert [row["file"] for row in rows] == [line["file"] for line in lines]
    assert [row["age"] for row in rows] == ["" if line["age"] is None else str(line["age"]) for line in lines]


def test_annotated_copies_and_crops(agegen, trained_run, folder, tmp_path):
    agegen("predict", folder, "--run", trained_run, "--annotate", tmp_path / "boxes", "--crops", tmp_path / "crops")
    copies = sorted(path.relative_to(tmp_path / "boxes").as_posix() for path in (tmp_path / "boxes").rglob("*.*"))
    assert copies == ["1.jpg", "3.png", "sub/2.webp.png"]
    drawn = np.asarray(Image.open(tmp_path / "boxes/1.jpg").convert("RGB"))
    plain = np.asarray(Image.open(folder / "1.jpg").convert("RGB"))
    assert drawn.shape == plain.shape
    assert (drawn != plain).any()
    crops = sorted(path.relative_to(tmp_path / "crops").as_posix() for path in (tmp_path / "crops").rglob("*.*"))
    assert crops == ["1.jpg-1.png", "sub/2.webp-1.png"]
    assert Image.open(tmp_path / "crops" / crops[0]).size == (200, 200)


def test_a_copy_never_takes_the_place_of_the_photograph(agegen, trained_run, folder):
    before = (folder / "1.jpg").read_bytes()
    done = agegen("predict", folder, "--run", trained_run, "--annotate", folder)
    assert done.exit_code == 1
    assert "is the photograph itself" in done.stderr
    assert (folder / "1.jpg").read_bytes() == before


def test_paths_from_stdin(trained_run, folder):
    names = f"{folder / '1.jpg'}\n\n{folder / '4.jpg'}\n"
    done = run_process(["-", "--run", trained_run, "--jsonl", "-"], input=names.encode())
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["status"] for row in rows] == ["ok", "unreadable"]
    assert done.returncode == 1


def test_resume_goes_on_after_the_last_finished_file(agegen, trained_run, folder, tmp_path):
    output = tmp_path / "rows.csv"
    agegen("predict", folder, "--run", trained_run, "--csv", output)
    whole = output.read_text()
    output.write_text("\n".join(whole.splitlines()[:3]) + "\n/tmp/ph")
    done = agegen("predict", folder, "--run", trained_run, "--csv", output, "--resume")
    assert output.read_text() == whole
    assert "1 files already processed" in done.stderr


def test_demo(agegen, trained_run):
    done = agegen("predict", "--demo", "--run", trained_run, "--jsonl", "-")
    row = json.loads(done.stdout)
    assert row["file"].endswith("grace_hopper.jpg")
    assert row["status"] == "ok"


def run_process(arguments, **options):
    command = [sys.executable, "-m", "agegen", "predict", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=120, check=False, **options)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX names and signals")
def test_names_that_are_no_text(trained_run, folder, tmp_path):
    names = {os.fsdecode(b"\xff\xfe.jpg"), "new\nline.jpg"}
    for name in names:
        shutil.copy(folder / "1.jpg", folder / name)
    done = run_process([folder, "--run", trained_run, "--csv", tmp_path / "rows.csv", "--jsonl", "-"])
    files = {json.loads(line)["file"] for line in done.stdout.splitlines()}
    assert {str(folder / name) for name in names} < files
    assert len(files) == 6
    assert b"Traceback" not in done.stderr
    table = run_process([folder, "--run", trained_run])
    assert b"Traceback" not in table.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_leaves_whole_rows(trained_run, folder, tmp_path):
    """Interrupted while it waits for more names in its pipe, after it has written what it was given."""
    output = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "agegen", "predict", "-", "--run", str(trained_run), "--jsonl", str(output)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=restore_ctrl_c,
    )
    process.stdin.write(f"{folder / '1.jpg'}\n".encode() * 20)
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while not output.exists() or output.read_bytes().count(b"\n") < 20:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    errors = process.stderr.read()
    process.stdin.close()
    assert process.wait(timeout=60) == 130
    assert b"Traceback" not in errors
    lines = output.read_text().splitlines()
    assert len(lines) == 20
    assert all(json.loads(line)["file"] for line in lines)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
def test_a_reader_that_leaves_is_no_traceback(trained_run, folder):
    for number in range(30):
        shutil.copy(folder / "1.jpg", folder / f"copy-{number}.jpg")
    command = f"{sys.executable} -m agegen predict {folder} --run {trained_run} --jsonl - | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=120, check=False)
    assert json.loads(done.stdout)["status"] == "ok"
    assert b"Traceback" not in done.stderr


def test_places_of_copies(tmp_path):
    (tmp_path / "a").mkdir()
    base = find_base([str(tmp_path / "a"), str(tmp_path / "b.jpg")])
    assert base == tmp_path
    out = tmp_path / "out"
    assert place_copy(str(tmp_path / "a" / "x.jpg"), out, base, "") == out / "a" / "x.jpg"
    assert place_copy(str(tmp_path / "a" / ".." / ".." / "x.jpg"), out, base, "-1.png").is_relative_to(out)
    assert place_copy("/elsewhere/x.jpg", out, base, "") == out / "elsewhere" / "x.jpg"
