"""``agegen predict`` as a user runs it."""

import base64
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from holding import restore_ctrl_c
from PIL import Image


@pytest.fixture
def folder(portrait, tmp_path):
    """A portrait, one in a subfolder, an image without a face, a damaged file and a text."""
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


def test_long_paths_are_shortened_in_the_middle(agegen, trained_run, portrait, tmp_path):
    deep = tmp_path / ("folder" * 20) / "the-name-of-the-file.jpg"
    deep.parent.mkdir()
    shutil.copy(portrait, deep)
    done = agegen("predict", deep, "--run", trained_run)
    (row,) = (line for line in done.stdout.splitlines() if "file.jpg" in line)
    assert "…" in row


def test_json_rows(agegen, trained_run, folder):
    done = agegen("predict", folder, "--run", trained_run, "--json", "-")
    rows = json.loads(done.stdout)
    assert [row["status"] for row in rows] == ["ok", "no_face", "unreadable", "ok"]
    assert 0 <= rows[0]["age_low"] <= rows[0]["age"] <= rows[0]["age_high"] <= 116
    assert rows[0]["gender"] in ("female", "male", "uncertain")
    assert rows[2]["reason"].startswith("not a readable image")
    assert done.exit_code == 1


def read_report(page):
    (text,) = re.findall('<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(text)["faces"]


def test_report_shows_the_rows_and_links_the_photos(agegen, trained_run, folder, tmp_path):
    done = agegen(
        *(
            "predict",
            folder,
            "--run",
            trained_run,
            "--report",
            tmp_path / "faces.html",
            "--json",
            tmp_path / "rows.json",
        )
    )
    assert "report: " in done.stderr
    rows = [row for row in json.loads((tmp_path / "rows.json").read_text()) if row["status"] == "ok"]
    faces = read_report(tmp_path / "faces.html")
    for name in ("age", "age_low", "gender", "p_female", "box", "score"):
        assert [face[name] for face in faces] == [row[name] for row in rows], name
    assert [face["href"] for face in faces] == ["./photos/1.jpg", "./photos/sub/2.webp"]
    assert [(face["width"], face["height"]) for face in faces] == [(512, 600)] * 2
    assert "not a readable image" in (tmp_path / "faces.html").read_text()


@pytest.mark.parametrize("words", [("--no-detect",), ("--crops", "crops"), ("--boxes", "boxes.csv")])
def test_report_has_the_crops_that_the_model_saw(agegen, trained_run, portrait, tmp_path, words):
    (tmp_path / "boxes.csv").write_text(f"file,left,top,right,bottom\n{portrait},173,116,357,340\n")
    agegen("predict", portrait, "--run", trained_run, "--report", "faces.html", *words)
    (face,) = read_report(tmp_path / "faces.html")
    with Image.open(io.BytesIO(base64.b64decode(face["thumb"]))) as thumbnail:
        assert thumbnail.size == (96, 96)
        assert np.asarray(thumbnail).std() > 30
    assert "href" not in face
    assert ("box" in face) == (words != ("--no-detect",))


def test_csv_and_json_lines_have_the_same_rows(agegen, trained_run, folder, tmp_path):
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


def test_copies_never_overwrite_inputs(agegen, trained_run, folder):
    before = (folder / "1.jpg").read_bytes()
    done = agegen("predict", folder, "--run", trained_run, "--annotate", folder)
    assert done.exit_code == 1
    assert "the copy would overwrite the input" in done.stderr
    assert (folder / "1.jpg").read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX names")
def test_a_copy_whose_name_is_too_long_does_not_end_the_run(agegen, trained_run, portrait, tmp_path):
    """Names have at most 255 bytes, and that of a crop is longer than that of its photo."""
    longest = tmp_path / ("x" * 250 + ".jpg")
    shutil.copy(portrait, longest)
    done = agegen("predict", longest, portrait, "--run", trained_run, "--crops", tmp_path / "crops", "--json", "-")
    face, problem, other = json.loads(done.stdout)
    assert (face["status"], problem["status"], other["status"]) == ("ok", "unreadable", "ok")
    assert "the name of its copy would be too long" in problem["reason"]
    assert done.exit_code == 1


def test_paths_from_stdin(trained_run, folder):
    names = f"{folder / '1.jpg'}\n\n{folder / '4.jpg'}\n"
    done = run_process(["-", "--run", trained_run, "--jsonl", "-"], input=names.encode())
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["status"] for row in rows] == ["ok", "unreadable"]
    assert done.returncode == 1


def test_resume_continues_after_the_last_finished_file(agegen, trained_run, folder, tmp_path):
    output = tmp_path / "rows.csv"
    agegen("predict", folder, "--run", trained_run, "--csv", output)
    complete = output.read_text()
    output.write_text("\n".join(complete.splitlines()[:3]) + "\n/tmp/ph")
    done = agegen("predict", folder, "--run", trained_run, "--csv", output, "--resume")
    assert output.read_text() == complete
    assert "continuing after 1 of 4 inputs" in done.stderr


def test_resume_compares_files_not_names(agegen, trained_run, portrait, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        shutil.copy(portrait, tmp_path / "photos" / name)
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    words = ("--run", trained_run, "--csv", tmp_path / "rows.csv")
    monkeypatch.chdir(tmp_path)
    agegen("predict", "photos/a.jpg", "photos/b.jpg", *words)
    for again in ("./photos", tmp_path / "photos", "link/../photos", "link"):
        done = agegen("predict", again, *words, "--resume")
        assert "continuing after" in done.stderr
        rows = list(csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text())))
        assert [row["file"][-5:] for row in rows] == ["a.jpg", "b.jpg", "c.jpg"]
        assert rows[0]["file"] == "photos/a.jpg"


def test_a_second_run_does_not_process_its_own_copies(agegen, trained_run, folder):
    words = ("--run", trained_run, "--annotate", folder / "boxes", "--crops", folder / "sub" / "crops", "--json", "-")
    first = agegen("predict", folder, *words)
    second = agegen("predict", folder, *words)
    assert json.loads(second.stdout) == json.loads(first.stdout)
    assert not (folder / "boxes" / "boxes").exists()


def test_rows_that_go_to_a_file_are_not_printed(agegen, trained_run, folder, tmp_path):
    done = agegen("predict", folder, "--run", trained_run, "--csv", tmp_path / "rows.csv")
    assert done.stdout == ""
    assert "2 faces in 4 photos, 1 without a face, 1 unreadable" in done.stderr
    assert (
        "1 face in 1 photo,"
        in agegen("predict", folder / "1.jpg", "--run", trained_run, "--jsonl", tmp_path / "rows.jsonl").stderr
    )


def test_reasons_have_their_own_column(agegen, trained_run, portrait, tmp_path):
    done = agegen("predict", portrait, "nosuch/", "--run", trained_run)
    header, *rows = (
        line.replace("┃", "│").split("│")[1:-1] for line in done.stdout.splitlines() if "│" in line or "┃" in line
    )
    (missing,) = (row for row in rows if "nosuch" in row[0])
    problem = [cell.strip() for cell in header].index("problem")
    assert missing[problem].strip() == "unreadable: no such file"
    assert not any(cell.strip() for cell in missing[1:problem])
    assert "problem" not in agegen("predict", portrait, "--run", trained_run).stdout


def test_demo(agegen, trained_run):
    done = agegen("predict", "--demo", "--run", trained_run, "--jsonl", "-")
    row = json.loads(done.stdout)
    assert row["file"].endswith("grace_hopper.jpg")
    assert row["status"] == "ok"


def run_process(arguments, **options):
    command = [sys.executable, "-m", "agegen", "predict", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=120, check=False, **options)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX names and signals")
def test_names_that_are_not_utf8(trained_run, folder, tmp_path):
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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_leaves_complete_rows(trained_run, folder, tmp_path):
    """Interrupted while it waits for more names on stdin, after it has written the rows of the first."""
    output, page = tmp_path / "rows.jsonl", tmp_path / "faces.html"
    command = [sys.executable, "-m", "agegen", "predict", "-", "--run", str(trained_run), "--jsonl", str(output)]
    command += ["--report", str(page)]
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
    assert len(read_report(page)) == 20
    assert "Incomplete" in page.read_text()
    lines = output.read_text().splitlines()
    assert len(lines) == 20
    assert all(json.loads(line)["file"] for line in lines)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
def test_a_closed_pipe_gives_no_traceback(trained_run, folder):
    for number in range(30):
        shutil.copy(folder / "1.jpg", folder / f"copy-{number}.jpg")
    command = f"{sys.executable} -m agegen predict {folder} --run {trained_run} --jsonl - | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=120, check=False)
    assert json.loads(done.stdout)["status"] == "ok"
    assert b"Traceback" not in done.stderr


def test_distribution_and_under_are_resumed_only_with_the_same_options(agegen, trained_run, portrait, tmp_path):
    words = ("--run", trained_run, "--csv", tmp_path / "rows.csv", "--distribution", "--under", 18, "--under", 30)
    agegen("predict", portrait, *words)
    (row,) = csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text()))
    assert list(row)[-3:] == ["under_18", "under_30", "distribution"]
    assert len(row["distribution"].split()) == 117
    assert float(row["under_18"]) <= float(row["under_30"])
    assert row["options"] == "under=18,30 distribution=True"
    without = agegen("predict", portrait, "--run", trained_run, "--csv", tmp_path / "rows.csv", "--resume")
    assert without.exit_code == 1
    assert "it was written with different --under or --distribution options" in without.stderr
    less = agegen("predict", portrait, *words[:-2], "--resume")
    assert "it was written with different --under or --distribution options" in less.stderr
    assert agegen("predict", portrait, *words, "--resume").exit_code == 0


def test_each_page_has_rows_and_a_copy(agegen, trained_run, portrait, tmp_path):
    page = Image.open(portrait).convert("RGB")
    empty = Image.new("RGB", (300, 200), "green")
    page.save(tmp_path / "scan.tif", save_all=True, append_images=[empty, page.rotate(10)])
    done = agegen("predict", tmp_path / "scan.tif", "--run", trained_run, "--json", "-", "--annotate", tmp_path / "out")
    rows = json.loads(done.stdout)
    assert [(row["page"], row["status"]) for row in rows] == [(1, "ok"), (2, "no_face"), (3, "ok")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"scan.tif-{page}.png" for page in (1, 2, 3)]
    single = json.loads(agegen("predict", portrait, "--run", trained_run, "--json", "-").stdout)
    assert "page" not in single[0]


def test_an_image_on_stdin(trained_run, portrait, tmp_path):
    words = ["-", "--run", trained_run, "--json", "-", "--annotate", tmp_path / "out"]
    done = run_process(words, input=portrait.read_bytes(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["file"], row["status"]) == ("-", "ok")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["-.png"]


@pytest.mark.parametrize("address", ["memory://nowhere/face.jpg", "nothing://nowhere/face.jpg"])
def test_a_missing_remote_image_is_an_unreadable_row(agegen, trained_run, address):
    done = agegen("predict", address, "--run", trained_run, "--json", "-")
    assert done.exit_code == 1
    (row,) = json.loads(done.stdout)
    assert (row["file"], row["status"]) == (address, "unreadable")
    assert row["reason"]
    assert "\n" not in row["reason"]


@pytest.mark.slow
def test_a_model_that_was_trained_without_ages_gives_none(agegen, faces_folder, portrait, tmp_path, quick_training):
    names = sorted(path.name for path in faces_folder.iterdir())
    lines = [f"{faces_folder / name},{name.split('_')[1]}" for name in names]
    (tmp_path / "genders.csv").write_text("\n".join(["path,gender", *lines]))
    run = tmp_path / "run"
    options = ("--data", tmp_path / "genders.csv", "--out", run, "--epochs", 1, "--workers", 0)
    trained = agegen("train", "--model", "scratch", *options)
    assert "no training face has an age" in " ".join(trained.stderr.split())
    options = ("--run", run, "--under", 18, "--min-confidence", 0.5)
    done = agegen("predict", portrait, *options, "--json", "-", "--distribution", "--csv", tmp_path / "rows.csv")
    (row,) = json.loads(done.stdout)
    assert row["age"] is row["age_low"] is row["age_high"] is None
    assert "distribution" not in row
    assert "under_18" not in row
    assert row["gender"] in ("female", "male")
    (cells,) = csv.DictReader((tmp_path / "rows.csv").open())
    assert cells["age"] == cells["under_18"] == cells["distribution"] == ""
    table = agegen("predict", portrait, *options, "--annotate", tmp_path / "boxes").stdout
    assert any(line.split().count("–") == 2 for line in table.splitlines())
    found = agegen("eval", run, "--data", faces_folder, "--split", "all", "--json", "-")
    assert json.loads(found.stdout)["counts"]["age"] == 0
    assert "trained without ages" in found.stderr
    assert "no age" in agegen("explain", portrait, "--run", run, "-o", tmp_path / "map.png").stdout
    refused = agegen("calibrate", run, "--data", faces_folder, "--out", tmp_path / "c.safetensors")
    assert "no age intervals to calibrate" in refused.stderr


@pytest.mark.slow
def test_images_that_are_not_such_crops_are_reported(agegen, utkface, tmp_path):
    """Crops of another size and uncropped photos are reported with the rows; right crops are not."""
    paths = [path for path in sorted(utkface.iterdir()) if not path.name.startswith(("0_", "1_"))][::800]
    rng = np.random.default_rng(0)
    for name in ("plain", "tiny", "photos"):
        (tmp_path / name).mkdir()
    for path in paths:
        image = Image.open(path)
        image.save(tmp_path / "plain" / path.name)
        framed = Image.new("RGB", (500, 500), "gray")
        framed.paste(image, (150, 150))
        framed.save(tmp_path / "tiny" / path.name)
        photo = Image.new("RGB", (700, 500), "gray")
        side = int(rng.integers(90, 260))
        photo.paste(image.resize((side, side)), tuple(int(rng.integers(0, most - side)) for most in photo.size))
        photo.save(tmp_path / "photos" / path.name)
    for name, text in (
        ("plain", None),
        ("tiny", "times smaller than the model expects"),
        ("photos", "uncropped photos"),
    ):
        done = agegen("predict", tmp_path / name, "--no-detect", "--jsonl", "-")
        assert len(done.stdout.splitlines()) == len(paths)
        assert ("note: " in done.stderr) == (text is not None), done.stderr
        assert text is None or text in done.stderr
