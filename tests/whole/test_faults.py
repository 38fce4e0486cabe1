"""Faults that a reading of the whole code found, each with what it did."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agegen.batches.cache_folder import list_cache
from agegen.data.images import decode_image, read_image_file
from agegen.errors import AgegenError, DataError
from agegen.files import replace_atomically, write_text
from agegen.predict.annotation import find_base, place_copy
from agegen.predict.inputs import find_inputs
from agegen.predict.results import PhotoPrediction
from agegen.predict.rows import load_resume_state, open_writer
from agegen.runs import RunFolder


def test_threads_that_decode_leave_the_warnings_of_the_process_alone(portrait):
    content = portrait.read_bytes()
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: decode_image(content), range(64)))
    assert warnings.filters == before


def test_a_file_of_gigabytes_is_not_read(tmp_path):
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(DataError, match=r"3\.2 GB are too much for a picture"):
        read_image_file(path)


def test_hidden_names_and_what_systems_leave_are_passed_over(portrait, tmp_path):
    for name in ("a.jpg", "._a.jpg", ".hidden/b.jpg", "@eaDir/a.jpg", "__MACOSX/a.jpg", "sub/c.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(portrait, path)
    found = find_inputs([str(tmp_path / "photos")])
    assert [os.path.relpath(name, tmp_path / "photos") for name in found.names] == ["a.jpg", "sub/c.jpg"]
    # What is named outright is meant.
    assert len(find_inputs([str(tmp_path / "photos" / "._a.jpg")]).names) == 1


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_can_not_be_listed_is_a_row(portrait, tmp_path):
    shutil.copy(portrait, tmp_path / "a.jpg")
    (tmp_path / "shut").mkdir(mode=0)
    assert str(tmp_path / "shut") in find_inputs([str(tmp_path)]).names


def test_a_refused_folder_becomes_an_input(monkeypatch, portrait, tmp_path):
    """As root, who may list everything: the system's refusal is played."""
    shutil.copy(portrait, tmp_path / "a.jpg")

    def walk(folder, onerror):
        onerror(PermissionError(13, "Permission denied", str(tmp_path / "shut")))
        yield str(folder), [], ["a.jpg"]

    monkeypatch.setattr("agegen.predict.inputs.os.walk", walk)
    assert find_inputs([str(tmp_path)]).names == [str(tmp_path / "a.jpg"), str(tmp_path / "shut")]


def test_copies_of_a_glob_over_folders_lie_below_its_plain_part(tmp_path):
    for name in ("x", "y"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "a.jpg").touch()
    base = find_base([str(tmp_path / "in" / "*" / "a.jpg")])
    assert base == tmp_path / "in"
    assert place_copy(str(tmp_path / "in" / "x" / "a.jpg"), Path("out"), base, "") == Path("out/x/a.jpg")


def test_cells_that_a_spreadsheet_would_compute_are_text(tmp_path):
    names = ["=1+1.jpg", "@x.jpg", "-y.jpg", "'=z.jpg", "plain.jpg"]
    target = tmp_path / "rows.csv"
    with open_writer("csv", str(target), sys.stdout.buffer) as writer:
        for name in names:
            writer.write(PhotoPrediction(name, "no_face"))
    lines = target.read_text().splitlines()[1:]
    assert [line[0] for line in lines] == ["'", "'", "'", "'", "p"]
    # And --resume knows them by their own names; the last file is done again.
    assert load_resume_state("csv", target) == set(names[:4])
    assert target.read_text().splitlines()[1:] == lines[:4]


def test_only_what_concerns_the_file_itself_is_a_failure_to_write_it(tmp_path):
    with pytest.raises(FileNotFoundError), replace_atomically(tmp_path / "a.txt"):
        (tmp_path / "none").read_text()
    with pytest.raises(AgegenError, match="can't write"), replace_atomically(tmp_path / "a.txt"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_swept_after_a_day(tmp_path):
    old, new, other = (tmp_path / name for name in (".a-12345678.txt", ".a-87654321.txt", ".b-12345678.txt"))
    for path in (old, new, other):
        path.touch()
    yesterday = time.time() - 30 * 3600
    os.utime(old, (yesterday, yesterday))
    os.utime(other, (yesterday, yesterday))
    write_text(tmp_path / "a.txt", "x")
    assert not old.exists()
    assert new.exists()
    assert other.exists()


def test_writing_files_never_touches_the_umask(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask is the process's"))
    write_text(tmp_path / "a.txt", "x")


def test_a_lock_is_held_by_one_alone(tmp_path):
    run = RunFolder(tmp_path)
    with run.lock():
        with pytest.raises(AgegenError, match="in use by another process"), run.lock():
            pass
        # Whoever failed to get it leaves it to its holder.
        with pytest.raises(AgegenError, match="in use by another process"), run.lock():
            pass
    with pytest.raises(ZeroDivisionError), run.lock():
        raise ZeroDivisionError
    with run.lock():
        pass


def test_an_error_inside_the_lock_is_not_taken_for_another_process(tmp_path):
    from filelock import Timeout

    with pytest.raises(Timeout), RunFolder(tmp_path).lock():
        raise Timeout("elsewhere")


def test_a_cache_whose_notes_are_a_list_is_damaged_no_traceback(tmp_path):
    folder = tmp_path / "features" / "abc"
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text("[1, 2]")
    assert [entry.identity for entry in list_cache(tmp_path)] == ["damaged"]


def test_an_input_that_is_gone_is_named_not_the_output(trained_run, tmp_path, agegen):
    """`compare` on a run without its checkpoint said "can't write the output"."""
    for name in ("one", "two"):
        shutil.copytree(trained_run, tmp_path / name)
    (tmp_path / "one" / "best.safetensors").unlink()
    done = agegen("compare", tmp_path / "one", tmp_path / "two")
    assert done.exit_code == 1
    assert "can't write the output" not in done.stderr
    assert "best.safetensors" in done.stderr


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_names_that_the_terminal_has_no_letters_for(trained_run, portrait, tmp_path, encoding):
    shutil.copy(portrait, tmp_path / "김철수.jpg")
    done = subprocess.run(
        [sys.executable, "-m", "agegen", "predict", str(tmp_path / "김철수.jpg"), "--run", str(trained_run)],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0, done.stderr.decode(encoding)
    assert "???.jpg" in done.stdout.decode(encoding)


def test_dollars_in_names_are_no_formulas(trained_run, faces_folder, tmp_path, agegen):
    rows = ["path,age,gender,club"]
    for number, path in enumerate(sorted(faces_folder.iterdir())):
        age, gender = path.name.split("_")[:2]
        rows.append(f"{path},{age},{gender},{('$up$', '$', 'a$b_{')[number % 3]}")
    (tmp_path / "clubs.csv").write_text("\n".join(rows))
    done = agegen("data", "check", tmp_path / "clubs.csv", "--html", tmp_path / "page.html")
    assert done.exit_code == 0
    runs = [tmp_path / "$one$", tmp_path / "$two"]
    for run in runs:
        shutil.copytree(trained_run, run)
    assert agegen("compare", *runs, "--report", tmp_path / "compare.html").exit_code == 0


def test_bars_and_line_breaks_in_groups_leave_the_card_a_table():
    from agegen.export.card import _make_group_row

    nothing = {"mae": None, "accuracy": None, "coverage": None}
    group = {"column": "a|b", "value": "x\n|y", "n": 3, "small": True}
    cells = _make_group_row({**group, "age": nothing, "gender": nothing, "interval": nothing})
    assert cells[:2] == ["a\\|b", "x \\|y"]


def test_a_row_of_every_photograph_is_bounded_in_memory(portrait):
    """With --annotate photographs wait for their batch: by bytes, not by their number alone."""
    from agegen.data.images import Photo
    from agegen.predict.estimator import _BATCH_BYTES, _is_full
    from agegen.predict.extraction import ExtractedFaces

    picture = np.zeros((4000, 3000, 3), np.uint8)
    many = [ExtractedFaces("x", photo=Photo(picture, 1.0))] * (_BATCH_BYTES // picture.nbytes)
    assert not _is_full(many)
    assert _is_full([*many, many[0]])
    assert not _is_full([ExtractedFaces("x")] * 100)


def test_a_crowd_is_estimated_in_batches(trained_run):
    from agegen import Estimator

    estimator = Estimator.load(run=trained_run, detector="none")
    sizes = []
    run = estimator.model.engine.run
    estimator.model.engine.run = lambda crops, _: sizes.append(len(crops)) or run(crops)
    crops = [np.random.default_rng(seed).integers(0, 255, (96, 96, 3)).astype(np.uint8) for seed in range(150)]
    estimates = estimator.model.estimate(crops)
    assert sizes == [64, 64, 22]
    assert estimates[149].age == pytest.approx(estimator.model.estimate([crops[149]])[0].age, abs=0.01)


def test_the_shown_portrait_needs_no_folder_to_write_to(tmp_path):
    """matplotlib wants one before it tells where its data lies; nothing of it is imported."""
    code = (
        "from agegen.files import find_portrait; import sys, os\n"
        "assert os.path.isfile(find_portrait()); assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_contract_checks_stand_under_optimisation():
    """`python -O` leaves asserts out; a broken backbone must still be found."""
    code = (
        "from agegen.testing import check_backbone\nfrom agegen_scratch import ScratchBackbone\n"
        "class Broken(ScratchBackbone):\n    feature_dim = 7\n"
        "try:\n    check_backbone(Broken)\nexcept AssertionError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, check=True)
    assert "not (2, 7)" in done.stdout


def test_a_split_column_without_a_part_says_so(faces_folder, tmp_path, agegen):
    rows = [f"{path},{path.name.split('_')[0]},{path.name.split('_')[1]},train" for path in faces_folder.iterdir()]
    (tmp_path / "m.csv").write_text("\n".join(["path,age,gender,split", *rows]))
    done = agegen("train", "--model", "scratch", "--data", tmp_path / "m.csv")
    assert done.exit_code == 1
    assert "the column split names no val row" in done.stderr


@pytest.mark.usefixtures("quick_training")
def test_one_gender_alone_is_told_and_stays_uncertain(faces_folder, tmp_path, agegen):
    rows = [f"{path},{path.name.split('_')[0]},m" for path in faces_folder.iterdir()]
    (tmp_path / "m.csv").write_text("\n".join(["path,age,gender", *rows]))
    options = ("--epochs", "1", "--batch-size", "16", "--workers", "0", "--out", tmp_path / "run")
    done = agegen("train", "--model", "scratch", "--data", tmp_path / "m.csv", *options)
    assert "every face is male: of gender nothing can be learnt" in done.stderr
    done = agegen("predict", next(faces_folder.iterdir()), "--run", tmp_path / "run", "--no-detect", "--json", "-")
    assert json.loads(done.stdout)[0]["gender"] == "uncertain"


def test_a_face_found_twice_is_one():
    from agegen.faces.geometry import DetectedFace
    from agegen.faces.refinement import drop_repeated

    points = np.array([[30.0, 30], [70, 30], [50, 50], [35, 70], [65, 70]])
    faces = [
        DetectedFace((0, 0, 100, 100), points, 0.9),
        DetectedFace((5, 5, 105, 105), points + 4, 0.95),
        DetectedFace((200, 0, 300, 100), points + [200, 0], 0.8),
    ]
    assert [face.score for face in drop_repeated(faces)] == [0.95, 0.8]


def test_another_file_under_the_detectors_name_is_refused(tmp_path):
    from agegen.faces.yunet import check_weights

    (tmp_path / "yunet.onnx").write_bytes(b"something else")
    with pytest.raises(AgegenError, match="is not the detector that agegen knows"):
        check_weights(tmp_path / "yunet.onnx")


def test_a_list_on_stdin_can_be_interrupted_anywhere(tmp_path):
    """A thread that waits in Python's own buffer when the program ends makes it abort; ours waits below it."""
    from agegen.predict.inputs import read_stdin

    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as stream, os.fdopen(writer, "wb", buffering=0) as sink:
        sink.write(b"a.jpg\n\nb")
        lines = read_stdin(stream)
        assert next(lines) == "a.jpg"
        threading.Timer(0.05, lambda: (sink.write(b".jpg\r\nc"), sink.close())).start()
        assert list(lines) == ["b.jpg", "c"]


def test_no_model_is_built_of_weights_that_half_precision_can_not_hold(trained_run, tmp_path):
    from agegen.export.export import ExportConfig, export_run
    from agegen.model.checkpoint import load_checkpoint, save_checkpoint

    shutil.copytree(trained_run, tmp_path / "run")
    info, model = load_checkpoint(tmp_path / "run" / "best.safetensors")
    model.heads.age[0].weight.data[0, 0] = 1e6
    save_checkpoint(tmp_path / "run" / "best.safetensors", model, info)
    with pytest.raises(AgegenError, match=r"the tensor heads\.age\.0\.weight has values too large for half precision"):
        export_run(ExportConfig(tmp_path / "run", tmp_path / "w.safetensors"))


def test_a_good_picture_is_no_copy_of_one_that_goes_itself(faces_folder, tmp_path):
    from agegen.datatools.check import CheckConfig, check_data, list_removals

    first, second, *_ = sorted(faces_folder.iterdir())
    # The first of two near-duplicates is tiny, and goes: the second, full-sized one stays.
    Image.open(second).resize((40, 40)).save(tmp_path / "30_0_0_201701010000000001.png")
    shutil.copy(second, tmp_path / "30_0_0_201701010000000002.png")
    shutil.copy(first, tmp_path / "40_1_0_201701010000000003.png")
    report = check_data(CheckConfig((str(tmp_path),)))
    assert len(report.duplicates.pairs) == 1
    assert [item.path for item in list_removals(report)] == ["30_0_0_201701010000000001.png"]


def test_fresh_heads_begin_at_what_the_labels_say():
    import torch

    from agegen.backbone import HeadConfig
    from agegen.data.labels import Labels
    from agegen.model.network import TwoHeads, expect_age
    from agegen.train.loop import fit_biases

    heads = TwoHeads(8, HeadConfig()).eval()
    ages = np.array([20.0] * 70 + [40.0] * 30, dtype=np.float32)
    fit_biases(heads, Labels(ages, ages, np.array([1.0] * 75 + [0.0] * 25, dtype=np.float32)))
    for layer in (heads.age[-1], heads.gender[-1]):
        layer.weight.data.zero_()
    outputs = heads(torch.randn(3, 8))
    assert expect_age(outputs.age_logits.softmax(dim=1)).tolist() == pytest.approx([26.0] * 3, abs=0.3)
    assert outputs.gender_logit.sigmoid().tolist() == pytest.approx([0.745] * 3, abs=0.01)


def test_a_plugin_whose_package_raises_disturbs_nothing(tmp_path, monkeypatch):
    """Looking for `pkg.mod` imports `pkg`, which may raise anything."""
    from dataclasses import replace
    from importlib.metadata import EntryPoint

    from agegen.plugins import find_plugin, locate_file

    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger" / "__init__.py").write_text("raise RuntimeError('boom')")
    (tmp_path / "stranger" / "mod.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    plugin = replace(find_plugin("scratch"), entry_point=EntryPoint("x", "stranger.mod:Net", "agegen.backbones"))
    assert locate_file(plugin, "weights.safetensors") is None


@pytest.mark.skipif(not shutil.which("unshare") or os.name != "posix" or os.geteuid() != 0, reason="remounts /")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["predict", "--demo", "--model", "scratch"], "scratch (onnx)"),
        (["data", "check", "{faces}", "--html", "/tmp/c.html"], "set MPLCONFIGDIR or TMPDIR"),
    ],
)
def test_on_a_read_only_system_without_a_home_what_can_be_done_is_done(faces_folder, arguments, said):
    words = " ".join([sys.executable, "-m", "agegen", *(word.format(faces=faces_folder) for word in arguments)])
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR")}
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"mount -o remount,ro,bind / && exec {words}"],
        capture_output=True,
        text=True,
        env={**kept, "TMPDIR": "/nonexistent"},
    )
    if "permission denied" in done.stderr.lower() and "mount" in done.stderr:
        pytest.skip("mounts are not allowed here")
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_the_systems_refusals_are_told_by_name():
    from agegen.cli.app import explain_os_error

    assert explain_os_error(FileNotFoundError(2, "No such file", "x.bin")) == "x.bin: No such file"
    assert explain_os_error(OSError(28, "No space left on device")) == "can't write the output: No space left on device"
    nowhere = FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")
    assert "set TMPDIR to a folder that can be written" in explain_os_error(nowhere)
