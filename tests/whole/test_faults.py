"""Regression tests for faults that code reviews found, in all packages."""

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
from agegen.predict.annotation import find_common_folder, make_copy_path
from agegen.predict.inputs import find_inputs
from agegen.predict.results import PhotoPrediction
from agegen.predict.rows import load_resume_state, open_writer
from agegen.runs import RunFolder


def test_decoding_threads_do_not_change_the_warning_filters(portrait):
    content = portrait.read_bytes()
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: decode_image(content), range(64)))
    assert warnings.filters == before


def test_a_file_of_gigabytes_is_not_read(tmp_path):
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(DataError, match=r"3\.2 GB are too large for an image"):
        read_image_file(path)


def test_hidden_files_and_system_folders_are_skipped(portrait, tmp_path):
    for name in ("a.jpg", "._a.jpg", ".hidden/b.jpg", "@eaDir/a.jpg", "__MACOSX/a.jpg", "sub/c.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(portrait, path)
    found = find_inputs([str(tmp_path / "photos")])
    assert [os.path.relpath(name, tmp_path / "photos") for name in found.names] == ["a.jpg", "sub/c.jpg"]
    # A file that is named explicitly is not skipped.
    assert len(find_inputs([str(tmp_path / "photos" / "._a.jpg")]).names) == 1


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_listed_is_a_row(portrait, tmp_path):
    shutil.copy(portrait, tmp_path / "a.jpg")
    (tmp_path / "shut").mkdir(mode=0)
    assert str(tmp_path / "shut") in find_inputs([str(tmp_path)]).names


def test_a_folder_without_permission_is_an_input(monkeypatch, portrait, tmp_path):
    """Simulated, because root may list every folder."""
    shutil.copy(portrait, tmp_path / "a.jpg")

    def walk(folder, onerror):
        onerror(PermissionError(13, "Permission denied", str(tmp_path / "shut")))
        yield str(folder), [], ["a.jpg"]

    monkeypatch.setattr("agegen.predict.inputs.os.walk", walk)
    assert find_inputs([str(tmp_path)]).names == [str(tmp_path / "a.jpg"), str(tmp_path / "shut")]


def test_copies_of_a_glob_keep_the_folders_below_its_fixed_part(tmp_path):
    for name in ("x", "y"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "a.jpg").touch()
    base = find_common_folder([str(tmp_path / "in" / "*" / "a.jpg")])
    assert base == tmp_path / "in"
    assert make_copy_path(str(tmp_path / "in" / "x" / "a.jpg"), Path("out"), base, "") == Path("out/x/a.jpg")


def test_cells_that_look_like_formulas_are_written_as_text(tmp_path):
    names = ["=1+1.jpg", "@x.jpg", "-y.jpg", "'=z.jpg", "plain.jpg"]
    target = tmp_path / "rows.csv"
    with open_writer("csv", str(target), sys.stdout.buffer) as writer:
        for name in names:
            writer.write(PhotoPrediction(name, "no_face"))
    lines = target.read_text().splitlines()[1:]
    assert [line[0] for line in lines] == ["'", "'", "'", "'", "p"]
    # --resume recognises the original names; the last file is processed again.
    assert load_resume_state("csv", target) == set(names[:4])
    assert target.read_text().splitlines()[1:] == lines[:4]


def test_only_errors_of_the_written_file_are_reported_as_write_errors(tmp_path):
    with pytest.raises(FileNotFoundError), replace_atomically(tmp_path / "a.txt"):
        (tmp_path / "none").read_text()
    with pytest.raises(AgegenError, match="cannot write"), replace_atomically(tmp_path / "a.txt"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_temporary_files_of_killed_processes_are_deleted_after_a_day(tmp_path):
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


def test_temporary_files_of_a_process_killed_just_now_are_deleted_by_the_next_write(tmp_path):
    code = (
        "import os, pathlib, sys; from agegen.files import replace_atomically\n"
        "with replace_atomically(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('x'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.txt")], check=False)
    (left,) = tmp_path.iterdir()
    os.utime(left, (time.time() - 5, time.time() - 5))
    with replace_atomically(tmp_path / "a.txt") as alive:
        assert list(tmp_path.iterdir()) == [alive]
        os.utime(alive, (time.time() - 5, time.time() - 5))
        write_text(tmp_path / "a.txt", "other")
        assert alive.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_writing_a_file_does_not_change_the_umask(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask belongs to the whole process"))
    write_text(tmp_path / "a.txt", "x")


def test_only_one_process_holds_the_lock(tmp_path):
    run = RunFolder(tmp_path)
    with run.lock():
        with pytest.raises(AgegenError, match="in use by another process"), run.lock():
            pass
        # A failed attempt does not release the lock of its holder.
        with pytest.raises(AgegenError, match="in use by another process"), run.lock():
            pass
    with pytest.raises(ZeroDivisionError), run.lock():
        raise ZeroDivisionError
    with run.lock():
        pass


def test_a_timeout_inside_the_lock_is_not_reported_as_a_locked_run(tmp_path):
    from filelock import Timeout

    with pytest.raises(Timeout), RunFolder(tmp_path).lock():
        raise Timeout("elsewhere")


def test_a_cache_with_invalid_metadata_is_listed_as_damaged(tmp_path):
    folder = tmp_path / "features" / "abc"
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text("[1, 2]")
    assert [entry.identity for entry in list_cache(tmp_path)] == ["damaged"]


def test_a_missing_input_file_is_named(trained_run, tmp_path, agegen):
    """`compare` on a run without a checkpoint reported that the output could not be written."""
    for name in ("one", "two"):
        shutil.copytree(trained_run, tmp_path / name)
    (tmp_path / "one" / "best.safetensors").unlink()
    done = agegen("compare", tmp_path / "one", tmp_path / "two")
    assert done.exit_code == 1
    assert "cannot write the output" not in done.stderr
    assert "best.safetensors" in done.stderr


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_names_with_letters_that_the_terminal_lacks_are_printed(trained_run, portrait, tmp_path, encoding):
    shutil.copy(portrait, tmp_path / "김철수.jpg")
    done = subprocess.run(
        [sys.executable, "-m", "agegen", "predict", "김철수.jpg", "--run", str(trained_run)],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0, done.stderr.decode(encoding)
    assert "???.jpg" in done.stdout.decode(encoding)


@pytest.mark.slow
def test_dollars_in_names_are_not_read_as_math(trained_run, faces_folder, tmp_path, agegen):
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


def test_bars_and_line_breaks_in_group_names_keep_the_card_table_intact():
    from agegen.export.card import _make_group_row

    nothing = {"mae": None, "accuracy": None, "coverage": None}
    group = {"column": "a|b", "value": "x\n|y", "n": 3, "small": True}
    cells = _make_group_row({**group, "age": nothing, "gender": nothing, "interval": nothing})
    assert cells[:2] == ["a\\|b", "x \\|y"]


def test_photos_that_wait_for_their_batch_are_bounded_in_memory(portrait):
    """With --annotate, photos wait for their batch: limited by bytes, not only by their number."""
    from agegen.data.images import Photo
    from agegen.predict.estimator import _BATCH_BYTES, _is_full
    from agegen.predict.results import ExtractedFaces

    picture = np.zeros((4000, 3000, 3), np.uint8)
    many = [ExtractedFaces("x", photo=Photo(picture, 1.0))] * (_BATCH_BYTES // picture.nbytes)
    assert not _is_full(many)
    assert _is_full([*many, many[0]])
    assert not _is_full([ExtractedFaces("x")] * 100)


def test_many_faces_are_estimated_in_batches(trained_run):
    from agegen import Estimator

    estimator = Estimator.load(run=trained_run, detector="none")
    sizes = []
    run = estimator.model.engine.run
    estimator.model.engine.run = lambda crops, _: sizes.append(len(crops)) or run(crops)
    crops = [np.random.default_rng(seed).integers(0, 255, (96, 96, 3)).astype(np.uint8) for seed in range(150)]
    estimates = estimator.model.estimate(crops)
    assert sizes == [64, 64, 22]
    assert estimates[149].age == pytest.approx(estimator.model.estimate([crops[149]])[0].age, abs=0.01)


def test_the_demo_portrait_is_found_without_importing_matplotlib(tmp_path):
    """matplotlib requires a writable folder when it is imported."""
    code = (
        "from agegen.files import find_portrait; import sys, os\n"
        "assert os.path.isfile(find_portrait()); assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_contract_checks_also_run_with_python_o():
    """`python -O` skips assert statements; a broken backbone must still be found."""
    code = (
        "from agegen.testing import check_backbone\nfrom agegen_scratch import ScratchBackbone\n"
        "class Broken(ScratchBackbone):\n    feature_dim = 7\n"
        "try:\n    check_backbone(Broken)\nexcept AssertionError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, check=True)
    assert "features are (2, 9216), feature_dim says 7" in done.stdout


def test_a_split_column_that_lacks_a_split_is_one_line(faces_folder, tmp_path, agegen):
    rows = [f"{path},{path.name.split('_')[0]},{path.name.split('_')[1]},train" for path in faces_folder.iterdir()]
    (tmp_path / "m.csv").write_text("\n".join(["path,age,gender,split", *rows]))
    done = agegen("train", "--model", "scratch", "--data", tmp_path / "m.csv")
    assert done.exit_code == 1
    assert "the column 'split' has no val row" in done.stderr


@pytest.mark.usefixtures("quick_training")
def test_data_of_one_gender_get_a_notice_and_uncertain_estimates(faces_folder, tmp_path, agegen):
    rows = [f"{path},{path.name.split('_')[0]},m" for path in faces_folder.iterdir()]
    (tmp_path / "m.csv").write_text("\n".join(["path,age,gender", *rows]))
    options = ("--epochs", "1", "--batch-size", "16", "--workers", "0", "--out", tmp_path / "run")
    done = agegen("train", "--model", "scratch", "--data", tmp_path / "m.csv", *options)
    assert "every face is male: the gender head cannot be trained" in done.stderr
    done = agegen("predict", next(faces_folder.iterdir()), "--run", tmp_path / "run", "--no-detect", "--json", "-")
    assert json.loads(done.stdout)[0]["gender"] == "uncertain"


def test_a_list_on_stdin_can_be_interrupted(tmp_path):
    """A thread that waits in Python's buffered stdin makes the program abort when it ends; this one does not use it."""
    from agegen.predict.inputs import read_stdin

    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as stream, os.fdopen(writer, "wb", buffering=0) as sink:
        sink.write(b"a.jpg\n\nb")
        lines = read_stdin(stream)
        assert next(lines) == "a.jpg"
        threading.Timer(0.05, lambda: (sink.write(b".jpg\r\nc"), sink.close())).start()
        assert list(lines) == ["b.jpg", "c"]


def test_weights_too_large_for_half_precision_are_not_exported(trained_run, tmp_path):
    from agegen.export.export import export_run
    from agegen.model.checkpoint import load_checkpoint, save_checkpoint
    from agegen.runs import RunFolder

    shutil.copytree(trained_run, tmp_path / "run")
    info, model = load_checkpoint(tmp_path / "run" / "best.safetensors")
    model.heads.age[0].weight.data[0, 0] = 1e6
    save_checkpoint(tmp_path / "run" / "best.safetensors", model, info)
    # As if they were the weights that the training wrote.
    folder = RunFolder(tmp_path / "run")
    folder.write(folder.read() | {"sha256": {}})
    with pytest.raises(AgegenError, match=r"the tensor heads\.age\.0\.weight has values too large for half precision"):
        export_run(tmp_path / "run", tmp_path / "w.safetensors")


def test_the_good_image_of_near_duplicates_is_kept_if_the_other_is_removed(faces_folder, tmp_path):
    from agegen.datatools.check import check_data, list_removals
    from agegen.datatools.config import CheckConfig

    first, second, *_ = sorted(faces_folder.iterdir())
    # The first of two near-duplicates is tiny and is removed, so the second one is kept.
    Image.open(second).resize((40, 40)).save(tmp_path / "30_0_0_201701010000000001.png")
    shutil.copy(second, tmp_path / "30_0_0_201701010000000002.png")
    shutil.copy(first, tmp_path / "40_1_0_201701010000000003.png")
    report = check_data(CheckConfig((str(tmp_path),)))
    assert len(report.duplicates.pairs) == 1
    assert [item.path for item in list_removals(report)] == ["30_0_0_201701010000000001.png"]


def test_new_heads_start_at_the_distribution_of_the_labels():
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


def test_a_plugin_whose_package_raises_an_error_is_ignored(tmp_path, monkeypatch):
    """Finding `pkg.mod` imports `pkg`, which may raise any error."""
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
        (["data", "check", "{faces}", "--html", "/tmp/c.html"], "Set MPLCONFIGDIR or TMPDIR"),
    ],
)
def test_commands_work_on_a_read_only_system_without_a_home_folder(faces_folder, arguments, said):
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


def test_system_errors_name_the_file():
    from agegen.cli.app import explain_os_error

    assert explain_os_error(FileNotFoundError(2, "No such file", "x.bin")) == "x.bin: No such file"
    assert (
        explain_os_error(OSError(28, "No space left on device")) == "cannot write the output: No space left on device"
    )
    nowhere = FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")
    assert "set TMPDIR to a writable folder" in explain_os_error(nowhere)


# A container's user without HOME and without an entry in /etc/passwd.
NO_HOME = """
import os, pwd, sys
os.environ.pop("HOME", None)
def refuse(user):
    raise KeyError(user)
pwd.getpwuid = refuse
from agegen.cli import main
main()
"""


def run_without_home(folder, *words):
    names = ("HOME", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "MPLCONFIGDIR")
    env = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-c", NO_HOME, *map(str, words)]
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX users")
def test_commands_work_without_a_home(faces_folder, portrait, tmp_path):
    train = ("train", "--model", "scratch", "--data", faces_folder, "--epochs", 1, "--batch-size", 16, "--out", "run")
    commands = [("predict", portrait, "--demo"), ("data", "check", faces_folder, "--html", "check.html"), train]
    for words in commands:
        done = run_without_home(tmp_path, *words)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "best.onnx").exists()
    assert (tmp_path / "run" / "curves.png").exists()
    assert not (tmp_path / "~").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX users")
@pytest.mark.parametrize(
    ("words", "name"), [(["train", "--model", "vgg16", "--data", "demo"], "HF_HOME"), (["cache"], "XDG_CACHE_HOME")]
)
def test_commands_that_require_a_home_say_so_first(tmp_path, words, name):
    done = run_without_home(tmp_path, *words)
    assert done.returncode == 1
    assert "found no home directory" in done.stderr.splitlines()[-1]
    assert name in done.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("*"))
