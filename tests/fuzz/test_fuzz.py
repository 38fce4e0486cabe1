"""Mutated files from a fixed seed: each ends in a row, within limits, and nothing else is run, written or contacted.

Each kind of file has a function that makes sound examples, and a test that runs a command on mutated copies of them.
"""

import io
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="the limits are Linux's")]

SEED = 20_260_117
# A damaged file may use up its time for decoding; far fewer of these do.
SECONDS = 900
# The model, the detector and OpenCV take about 0.7 GB.
MEMORY = 4 << 30

# Written to a file by the command and its processes: programs that they run, addresses, and files opened for writing
# outside the folder of the test. Python imports a module of this name when it starts.
AUDIT = """
import os, sys
_folder, _log, _starts = {folder!r}, {log!r}, ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system")
_log = os.open(_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def _report(event, arguments):
    if event in _starts and "run_decoder" not in str(arguments):
        os.write(_log, f"{{event}} {{arguments}}\\n".encode())
    elif event == "socket.connect":
        os.write(_log, f"{{event}} {{arguments[1:]}}\\n".encode())
    elif event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        path = os.path.realpath(arguments[0])
        if not path.startswith((_folder, "/dev/")):
            os.write(_log, f"{{event}} {{path}}\\n".encode())

sys.addaudithook(_report)
"""


def run_audited(folder, *words):
    """Run the command line in a folder; return the process, and what it did beyond writing files there."""
    log = folder / "audit.log"
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(AUDIT.format(folder=str(folder.resolve()), log=str(log)))
    paths = [str(folder / "site"), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    done = subprocess.run(
        [sys.executable, "-m", "agegen", *map(str, words)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HOME": str(folder), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY)),
        check=False,
    )
    return done, log.read_text().splitlines()


def mutate(content, others, rng):
    """Return a damaged copy: bytes changed, inserted, removed, repeated or cut off, or a part of another file in it."""
    damaged = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        # Headers are as likely to be hit as all the rest.
        start = int(rng.integers(0, min(len(damaged), 400) if rng.random() < 0.5 else len(damaged)))
        size = int(2 ** rng.uniform(0, 10))
        part = damaged[start : start + size]
        match rng.integers(0, 7):
            case 0:
                damaged[start] ^= 1 << int(rng.integers(0, 8))
            case 1:
                damaged[start : start + 4] = rng.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"])
            case 2:
                damaged[start : start + size] = rng.bytes(len(part))
            case 3:
                damaged[start:start] = part * int(rng.integers(1, 50))
            case 4:
                del damaged[start : start + size]
            case 5:
                damaged = damaged[: max(start, 20)]
            case 6:
                other = others[rng.integers(0, len(others))]
                damaged[start : start + size] = other[start : start + size]
        if len(damaged) < 20:
            break
    return bytes(damaged)


def write_mutated(folder, examples, count):
    """Write mutated copies of (extension, content) to a folder; return the paths."""
    rng = np.random.default_rng(SEED)
    folder.mkdir()
    paths = []
    for number in range(count):
        suffix, content = examples[number % len(examples)]
        paths.append(folder / f"{number:03}{suffix}")
        paths[-1].write_bytes(mutate(content, [other for _, other in examples], rng))
    return paths


def encode(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def make_images(portrait):
    """Return an image of a face in every format that README names, and in the variants that cameras and tools write."""
    import pillow_heif
    import pillow_jxl  # noqa: F401 - registers the encoder

    pillow_heif.register_heif_opener()
    with Image.open(portrait) as pil_image:
        face = pil_image.convert("RGB").crop((100, 60, 440, 400)).resize((120, 120))
    exif = Image.Exif()
    exif[0x0112] = 6
    several = {"save_all": True, "append_images": [face.rotate(20), face.rotate(40)]}
    return [
        (".jpg", encode(face, "JPEG", exif=exif, dpi=(72, 72))),
        (".jpg", encode(face, "JPEG", progressive=True, comment=b"comment")),
        (".jpg", encode(face.convert("CMYK"), "JPEG")),
        (".mpo", encode(face, "MPO", **several)),
        (".png", encode(face, "PNG", exif=exif)),
        (".png", encode(face.convert("P"), "PNG", transparency=3)),
        (".apng", encode(face, "PNG", **several)),
        (".webp", encode(face, "WEBP", exif=exif)),
        (".webp", encode(face, "WEBP", lossless=True, **several)),
        (".avif", encode(face, "AVIF", exif=exif)),
        (".jp2", encode(face, "JPEG2000")),
        (".bmp", encode(face, "BMP")),
        (".tif", encode(face, "TIFF", save_all=True, append_images=[face.rotate(20), face.rotate(40)])),
        (".tif", encode(face, "TIFF", compression="tiff_lzw", exif=exif)),
        (".tif", encode(face, "TIFF", compression="tiff_deflate", big_tiff=True)),
        (".gif", encode(face, "GIF", **several)),
        (".heic", encode(face, "HEIF", exif=exif)),
        (".jxl", encode(face, "JXL")),
    ]


def make_videos(folder):
    """Return short videos in common containers and codecs."""
    rng = np.random.default_rng(SEED)
    frame = np.kron(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8), np.ones((10, 10, 1), np.uint8))
    videos = []
    for suffix, codec in (
        (".mp4", "libx264"),
        (".mkv", "mpeg4"),
        (".avi", "mjpeg"),
        (".webm", "libvpx"),
        (".mov", "h264"),
    ):
        path = folder / f"example{suffix}"
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=5)
            stream.width, stream.height = frame.shape[1], frame.shape[0]
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for shift in range(10):
                image = np.ascontiguousarray(np.roll(frame, 3 * shift, axis=1))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        videos.append((suffix, path.read_bytes()))
    return videos


def check_rows(folder, paths, done, audit):
    """Check that every file has rows, and that those without a face say in one line why."""
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    # The summary is all that a prediction writes to stderr; libraries must not.
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert audit == []
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert {Path(row["file"]).name for row in rows} == {path.name for path in paths}
    for row in rows:
        assert row["status"] in ("ok", "no_face", "unreadable")
        if row["status"] == "unreadable":
            assert row["reason"].isprintable() and 0 < len(row["reason"]) <= 200, row
    return rows


@pytest.mark.parametrize("words", [(), ("--frames",)], ids=["photos", "frames"])
def test_images(portrait, tmp_path, words):
    examples = make_images(portrait)
    paths = write_mutated(tmp_path / "images", examples, 300)
    done, audit = run_audited(tmp_path, "predict", "images", "--model", "compact", "--jsonl", "rows.jsonl", *words)
    rows = check_rows(tmp_path, paths, done, audit)
    statuses = {row["status"] for row in rows}
    assert statuses == {"ok", "no_face", "unreadable"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.log", "cache", "images", "rows.jsonl", "site"]
    # The networks of the detector, which are converted once.
    assert [path.name for path in (tmp_path / "cache" / "agegen").iterdir()] == ["detectors"]


def test_videos(tmp_path):
    paths = write_mutated(tmp_path / "videos", make_videos(tmp_path), 40)
    done, audit = run_audited(tmp_path, "predict", "videos", "--model", "compact", "--jsonl", "rows.jsonl")
    check_rows(tmp_path, paths, done, audit)
