"""Malicious and damaged input gives an unreadable row or a one-line error, never a traceback or a partial file."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from attacks import (
    EPS,
    encode,
    make_chunk,
    make_gif_comments,
    make_hidden_scans,
    make_large_png,
    make_pages,
    make_png,
    make_profile,
    make_rle_bmp,
    make_scans,
    make_segments,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from agegen.data.images import _read_simple_header, count_pages, decode_image, decode_photo, read_image_file
from agegen.errors import CheckpointError, DataError
from agegen.model.checkpoint import load_checkpoint
from agegen.predict.estimator import Estimator
from agegen.predict.extraction import DecodeLimits

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")


GRADIENT = Image.fromarray(np.arange(64 * 48 * 3, dtype=np.uint32).reshape(48, 64, 3).astype(np.uint8))
ENCODED = [encode(GRADIENT, kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=2000))
def test_arbitrary_bytes_are_decoded_or_refused(content):
    try:
        image = decode_image(content)
    except DataError as error:
        assert str(error)
    else:
        assert image.ndim == 3 and image.dtype == np.uint8


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(ENCODED), st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=8), st.data())
def test_damaged_images_are_decoded_or_refused(content, changes, data):
    damaged = bytearray(content)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    damaged = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        photo = decode_photo(damaged, 100)
    except DataError as error:
        assert str(error)
    else:
        assert max(photo.image.shape[:2]) <= 100


@pytest.mark.parametrize("content", ENCODED)
def test_truncated_and_empty_files_are_refused(content):
    for part in (b"", content[:3], content[: len(content) // 2]):
        with pytest.raises(DataError, match="not a readable image"):
            decode_image(part)


def test_the_extension_does_not_determine_the_format(tmp_path):
    (tmp_path / "photo.png").write_bytes(ENCODED[0])
    assert decode_image(read_image_file(tmp_path / "photo.png")).shape == (48, 64, 3)


def test_decompression_bombs_are_refused_before_decoding():
    for width, height in ((60_000, 60_000), (2**31 - 1, 2**31 - 1), (120_000_000, 1)):
        with pytest.raises(DataError, match=r"too many|not a readable"):
            decode_image(make_png(width, height, (b"IDAT", zlib.compress(b"\x00" * 100))))
    text = b"Comment\x00\x00" + zlib.compress(b"x" * 200_000_000)
    with pytest.raises(DataError):
        decode_image(make_png(8, 8, (b"zTXt", text), (b"IDAT", zlib.compress((b"\x00" + b"\x80" * 24) * 7))))


@pytest.mark.parametrize("mode", ["F", "I", "LAB", "HSV", "PA", "RGBX", "1"])
def test_rare_modes(mode, tmp_path):
    try:
        image = GRADIENT.convert("L").convert(mode) if mode in ("F", "I", "PA") else GRADIENT.convert(mode)
        content = encode(image, "TIFF")
    except (OSError, ValueError, KeyError):
        pytest.skip(f"this version of Pillow cannot write {mode}")
    try:
        assert decode_image(content).shape == (48, 64, 3)
    except DataError as error:
        assert "not a readable image" in str(error)


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A program with the name of Ghostscript; return the path of the file that it writes when it is run."""
    called, folder = tmp_path / "called", tmp_path / "bin"
    folder.mkdir()
    (folder / "gs").write_text(f"#!/bin/sh\ntouch {called}\nexit 1\n")
    (folder / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    # Pillow looks for it once per process.
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    return called


@posix
def test_no_image_runs_a_program(agegen, trained_run, faces_folder, ghostscript, tmp_path):
    import pandas as pd

    photos, faces = tmp_path / "photos", tmp_path / "faces"
    photos.mkdir()
    (photos / "x.jpg").write_bytes(EPS)
    pd.DataFrame({"image": [EPS]}).to_parquet(tmp_path / "x.parquet")
    (tmp_path / "boxes.csv").write_text("file,left,top,right,bottom\nphotos/x.jpg,1,1,20,20\n")
    shutil.copytree(faces_folder, faces)
    (faces / "30_0_0_20170101000000.jpg").write_bytes(EPS)
    for words in ([photos], [tmp_path / "x.parquet"], ["--boxes", tmp_path / "boxes.csv"]):
        done = agegen("predict", *words, "--run", trained_run, "--json", "-")
        (row,) = json.loads(done.stdout)
        assert (row["status"], row["reason"]) == ("unreadable", "not a readable image (unknown format)")
    done = agegen("data", "check", faces)
    assert "not a readable image (unknown format)" in done.stdout + done.stderr
    with pytest.raises(DataError, match="unknown format"):
        Estimator.load(run=trained_run).predict(EPS)
    assert agegen("explain", photos / "x.jpg", "--run", trained_run, "--out", "x.png").exit_code == 1
    assert not ghostscript.exists()


@pytest.mark.parametrize("content", [b"P3 1 1 255 0 0 0", b"8BPS" + bytes(40), EPS, b"icns" + bytes(40), b"SIMPLE  ="])
def test_formats_that_readme_does_not_name_are_refused(content):
    with pytest.raises(DataError, match=r"^not a readable image \(unknown format\)$"):
        decode_image(content)


def test_photos_of_phones_with_a_preview_are_decoded():
    """Pillow calls them MPO; they have an index of their images in a segment."""
    content = encode(GRADIENT, "MPO", save_all=True, append_images=[GRADIENT.rotate(180)])
    assert b"MPF" in content
    assert np.abs(decode_image(content).astype(int) - np.asarray(GRADIENT)).mean() < 20


@pytest.mark.parametrize(
    "content",
    [make_rle_bmp(6_000_000), make_segments(3_000_000), make_gif_comments(9_000_000)],
    ids=["run-length encoding", "segments", "comments"],
)
def test_decoding_ends_after_a_time(content):
    started = time.monotonic()
    with pytest.raises(DataError, match=r"^decoding it takes more than 1 seconds$"):
        decode_photo(content, None, seconds=1)
    assert time.monotonic() - started < 10
    assert decode_photo(ENCODED[2], None).image.shape == (48, 64, 3)


def test_a_folder_of_slow_images_has_a_row_for_each(portrait, tmp_path):
    slow = [make_rle_bmp(6_000_000), make_segments(3_000_000), make_gif_comments(9_000_000)]
    for number, content in enumerate([*slow, EPS, portrait.read_bytes()]):
        (tmp_path / f"{number}.jpg").write_bytes(content)
    estimator = Estimator.load("compact")
    estimator.extractor.limits = DecodeLimits(seconds=1)
    photos = list(estimator.predict_many(tmp_path / f"{number}.jpg" for number in range(5)))
    assert [photo.status for photo in photos] == ["unreadable"] * 4 + ["ok"]
    assert {photo.reason for photo in photos[:3]} == {"decoding it takes more than 1 seconds"}


def test_files_with_unusual_structures_are_decoded_elsewhere():
    """Their bytes are valid, so they are decoded, but a process that can be killed does it."""
    png = make_png(2, 2, *[(b"tEXt", b"a\0b")] * 100, (b"IDAT", zlib.compress(bytes(14))))
    for content in (make_segments(500), make_segments(3, b"\xff\xff\xe1"), png, make_scans(30)):
        assert decode_image(content).ndim == 3
    # libjpeg skips the marker 01, which has no length.
    for content in (make_scans(5000), make_hidden_scans(5000), make_hidden_scans(5000, b"\xff\x01\xff\xff")):
        with pytest.raises(DataError, match="a JPEG with more than 100 scans"):
            decode_image(content)


def test_images_that_change_after_their_header_are_decoded_elsewhere():
    """Pillow uses the last of several headers of a PNG, and metadata of any size."""
    pixels = zlib.compress(bytes(14))
    large = struct.pack(">IIBBBBB", 12_000, 9_000, 8, 2, 0, 0, 0)
    exif = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x112, 3, 1, 1) + bytes(80_000)
    profile = b"p\0\0" + zlib.compress(make_profile(5))
    late = make_png(2, 2, (b"IDAT", pixels), (b"iCCP", profile))
    contents = (make_png(2, 2, (b"IHDR", large), (b"IDAT", pixels)), make_png(2, 2, (b"eXIf", exif)), late)
    assert [_read_simple_header(content, "PNG") for content in contents] == [None] * 3
    assert _read_simple_header(make_png(2, 2, (b"iCCP", profile), (b"IDAT", pixels)), "PNG") is not None


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_color_profiles_that_take_minutes_end_after_a_time(kind):
    content = encode(GRADIENT, kind, icc_profile=make_profile(7000))
    started = time.monotonic()
    with pytest.raises(DataError, match=r"^decoding it takes more than 2 seconds$"):
        decode_photo(content, None, seconds=2)
    assert time.monotonic() - started < 20


def test_metadata_that_refers_to_itself_takes_no_memory():
    """Each entry of this EXIF directory has the whole chunk as its value: 65,535 × 4 MB."""
    entry = struct.pack(">HHII", 0x100, 1, 4_000_000, 8)
    exif = (b"MM\0*\0\0\0\x08" + struct.pack(">H", 65_535) + entry * 65_535).ljust(4_000_000, b"\1")
    content = encode(GRADIENT, "PNG")
    content = content[:33] + make_chunk(b"eXIf", exif) + content[33:]
    assert decode_image(content).shape == (48, 64, 3)


@pytest.mark.slow
def test_one_large_image_is_decoded_at_a_time_in_little_memory(tmp_path):
    """108 megapixels with 16 bits and transparency, from four threads, once took 2.6 GB each."""
    (tmp_path / "large.png").write_bytes(make_large_png(12_000, 9_000))
    code = (
        "import resource, sys\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from agegen.data.images import _WORKERS, decode_photo\n"
        "content = open(sys.argv[1], 'rb').read()\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    shapes = list(pool.map(lambda _: decode_photo(content, 1000, seconds=120).image.shape, range(4)))\n"
        "assert shapes == [(750, 1000, 3)] * 4\n"
        "_WORKERS._close()\n"
        # Of the process itself ru_maxrss would include that of the process which started it.
        "peak = open('/proc/self/status').read().split('VmHWM:')[1].split()[0]\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, peak)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "large.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    assert all(int(peak) < 1_200_000 for peak in done.stdout.split())


def test_pages_are_found_in_one_pass():
    content = make_pages(100_000)
    started = time.monotonic()
    assert count_pages(content, 33) == 33
    assert count_pages(content, 1_000_000) == 100_000
    assert decode_photo(content, None, page=99_999).image.shape == (1, 1, 3)
    assert time.monotonic() - started < 10
    looped = bytearray(make_pages(3))
    looped[-4:] = looped[4:8]
    assert count_pages(bytes(looped), 100) == 3


def test_damaged_and_too_many_pages_have_rows_with_reasons(trained_run, tmp_path):
    content = bytearray(make_pages(9))
    # The width of the second page is 0.
    content[8 + 114 + 2 + 8] = 0
    (tmp_path / "a.tif").write_bytes(content)
    estimator = Estimator.load(run=trained_run)
    estimator.extractor.limits = DecodeLimits(pages=4)
    pages = list(estimator.predict_many([tmp_path / "a.tif"]))
    assert [page.page for page in pages] == [1, 2, 3, 4, 5]
    assert [page.status for page in pages] == ["no_face", "unreadable", "no_face", "no_face", "unreadable"]
    assert pages[1].reason == "not a readable image (damaged TIFF)"
    assert pages[4].reason == "it has more than 4 pages; the others were left out"
    estimator.extractor.limits = DecodeLimits(file_seconds=0)
    first, rest = estimator.predict_many([tmp_path / "a.tif"])
    assert (first.page, rest.page) == (1, 2)
    assert rest.reason == "decoding takes more than 0 seconds; pages were left out"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000", "HEIF", "JXL"])
def test_reasons_are_short_and_plain(kind, capfd):
    """Libraries write to stderr, and advise to rebuild them."""
    import pillow_heif
    import pillow_jxl  # noqa: F401 - registers the encoder

    pillow_heif.register_heif_opener()
    content = encode(GRADIENT, kind, **({"compression": "tiff_deflate"} if kind == "TIFF" else {}))
    reasons = set()
    for start in range(12, len(content), max(1, len(content) // 40)):
        for damaged in (content[:start], content[:start] + bytes(20) + content[start + 20 :]):
            try:
                decode_image(damaged)
            except DataError as error:
                reasons.add(str(error))
    allowed = r"not a readable image \((damaged|truncated) [A-Z][A-Za-z0-9 ]+\)|.* pixels are too many to decode"
    assert [reason for reason in reasons if not re.fullmatch(allowed, reason)] == []
    assert capfd.readouterr().err == ""


def test_a_photo_of_one_row_is_decoded():
    """Decoding it at a reduced size must not make its height 0."""
    content = encode(Image.new("RGB", (60_000, 1), "red"), "JPEG")
    assert decode_photo(content, 1000, lambda *_: 500).image.shape[2] == 3


@posix
def test_control_characters_do_not_reach_the_terminal(agegen, trained_run, tmp_path):
    name = "\x1b[31m\n\x9b\u202e.jpg"
    (tmp_path / name).write_bytes(ENCODED[0][:100])
    done = agegen("predict", name, "--run", trained_run)
    assert r"\x1b[31m\n\x9b\u202e.jpg" in done.stdout
    done_missing = agegen("predict", "a.jpg", "--run", name)
    assert done_missing.exit_code == 1
    output = done.stdout + done.stderr + done_missing.stderr
    assert not {*output} & {"\x1b", "\x9b", "\u202e"}
    rows = agegen("predict", name, "--run", trained_run, "--json", "-").stdout
    assert json.loads(rows)[0]["file"] == name


@posix
def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("pipe.jpg", "folder.jpg"):
        with pytest.raises(DataError, match="not a regular file"):
            read_image_file(tmp_path / name)
    with pytest.raises(DataError):
        read_image_file(tmp_path / "loop.jpg")
    with pytest.raises(DataError, match="not a regular file"):
        read_image_file(tmp_path.__class__("/dev/zero"))


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_missing_permissions_are_reported(tmp_path):
    (tmp_path / "a.jpg").write_bytes(ENCODED[0])
    (tmp_path / "a.jpg").chmod(0)
    with pytest.raises(DataError, match="Permission denied"):
        read_image_file(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.pt", b"\x80\x02}q\x00.", "pickles can run code"),
        ("model.safetensors", b"", "is damaged or not a safetensors file"),
        ("model.safetensors", b"\x80\x02}q\x00.", "is damaged or not a safetensors file"),
        ("model.safetensors", struct.pack("<Q", 2**62) + b"{}", "is damaged or not a safetensors file"),
        ("model.safetensors", struct.pack("<Q", 8) + b'{"a":1}\n', "is damaged or not a safetensors file"),
    ],
)
def test_invalid_checkpoints_are_refused_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"finished": true}', '{"model": 3, "finished": "x"}', "\x00"])
def test_damaged_run_folders_are_refused_in_one_line(agegen, tmp_path, content):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(content)
    for command in (
        ["eval", run],
        ["predict", "--demo", "--run", run],
        ["train", "--resume", run],
        ["compare", run, run],
    ):
        done = agegen(*command)
        assert done.exit_code == 1
        assert done.stderr.splitlines()[-1].startswith("error: ")


def run_cli(arguments, stdout):
    command = [sys.executable, "-m", "agegen", *map(str, arguments)]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, timeout=120, check=False)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="requires /dev/full")  # noqa: PTH110 - a device
@pytest.mark.parametrize("arguments", [["--jsonl", "-"], ["--json", "-"], ["--csv", "/dev/full"], []])
def test_a_full_disk_is_reported_in_one_line(trained_run, arguments):
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        done = run_cli(["predict", "--demo", "--run", trained_run, *arguments], full)
    assert done.returncode == 1
    assert b"No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_concurrent_predictions(trained_run, portrait, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        shutil.copy(portrait, folder / f"{number}.jpg")
    command = [sys.executable, "-m", "agegen", "predict", str(folder), "--run", str(trained_run), "--csv"]
    targets = [tmp_path / "one.csv", tmp_path / "two.csv"]
    running = [subprocess.Popen([*command, str(target)], stdout=subprocess.DEVNULL) for target in targets]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    first, second = (target.read_text() for target in targets)
    assert first == second
    assert len(first.splitlines()) == 7


def test_a_folder_of_unreadable_files_gives_unreadable_rows(agegen, trained_run, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    for number, content in enumerate([b"", b"\x00" * 1000, ENCODED[0][:40], make_png(50_000, 50_000)]):
        (folder / f"{number}.jpg").write_bytes(content)
    done = agegen("predict", folder, "--run", trained_run, "--jsonl", "-")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["status"] for row in rows] == ["unreadable"] * 4
    assert all(row["reason"] for row in rows)
    assert done.exit_code == 1
