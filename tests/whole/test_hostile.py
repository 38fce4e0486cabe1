"""Malicious and damaged input gives an unreadable row or a one-line error, never a traceback or a partial file."""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from agegen.data.images import decode_image, decode_photo, read_image_file
from agegen.errors import CheckpointError, DataError
from agegen.model.checkpoint import load_checkpoint

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")


def encode(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


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


def make_png(width, height, *chunks):
    """Return a PNG with this size in its header; chunks are (name, content)."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    parts = [header, *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )


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
