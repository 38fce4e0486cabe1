"""Images: find, read and decode them to RGB arrays, whatever their format, mode, color profile and orientation.

They are untrusted: a process that can be killed decodes those whose decoders can take long, see :func:`decode_photo`.
"""

from __future__ import annotations

import atexit
import io
import json
import math
import os
import re
import signal
import stat
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageChops, ImageSequence

from agegen.errors import DataError

RGB = NDArray[np.uint8]

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jfif", ".jpe", ".mpo", ".png", ".apng", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
        *(".avif", ".jp2", ".j2k", ".heic", ".heif", ".jxl"),
    }
)
# The formats that are read, by how a file begins. Pillow tries no other one: its other plugins run Ghostscript, or read
# formats whose decoders are slow or rarely tested.
_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    **dict.fromkeys((b"GIF87a", b"GIF89a"), "GIF"),
    **dict.fromkeys((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), "JPEG2000"),
    # In little and big endian, and BigTIFF.
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF"),
    # Bare, and in a container.
    **dict.fromkeys((b"\xff\x0a", b"\0\0\0\x0cJXL "), "JXL"),
}
# Bytes 5 to 12 of files in the container of HEIC and AVIF; mif1 and msf1 stand for both.
_BRANDS = {
    **dict.fromkeys((b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypheim", b"ftypheis"), "HEIF"),
    **dict.fromkeys((b"ftypmif1", b"ftypmsf1"), "HEIF"),
    **dict.fromkeys((b"ftypavif", b"ftypavis"), "AVIF"),
}
_BMP_START = b"BM"
# Formats that Pillow reads with a plugin: its package, and the extra of agegen that installs it.
_PLUGINS = {"HEIF": ("pillow_heif", "heic"), "JXL": ("pillow_jxl", "jxl")}
# The names of the formats in messages, where they differ from Pillow's.
_TITLES = {"JPEG2000": "JPEG 2000", "HEIF": "HEIC", "JXL": "JPEG XL", "WEBP": "WebP"}
# The white of floats by their largest value, which exceeds it after resampling: by a quarter at most beside hard edges.
# In 0–1 sharpened images may exceed it by more, since no image of 0–255 is as dark as 2.
_FLOAT_WHITES = ((2.0, 1.0), (1.25 * 255, 255.0))
_INTEGER_WHITES = tuple((white, white) for white in (255.0, 1023.0, 4095.0, 16383.0, 65535.0))
# Folders of thumbnails on a Synology NAS, and of metadata in archives from a Mac.
_SYSTEM_FOLDERS = frozenset({"@eaDir", "__MACOSX"})
# Cameras reach about a hundred megapixels; larger images are treated as decompression bombs.
MAX_PIXELS = 110_000_000
# The size of an uncompressed image with that many pixels and 16 bits per channel. Larger files would only fill memory.
MAX_BYTES = 6 * MAX_PIXELS + (1 << 20)
_PIXEL_BYTES = 3 * MAX_PIXELS
# Larger images are decoded one at a time: each takes 0.2 GB or more.
_LARGE_PIXELS = 25_000_000
# How many pixels are converted to RGB at once; more would only take memory.
_BAND_PIXELS = 4_000_000
# How many seconds decoding an image may take: the slowest formats take ten for 100 megapixels, more on a busy machine.
DECODE_SECONDS = 60.0
# How much memory decoding a small image and a large one may take, in bytes. JPEG 2000 and JPEG XL take 16 bytes per
# pixel and more.
_SMALL_MEMORY, _LARGE_MEMORY = 1 << 30, 5 << 29
# A file is decoded by this process if its header is as simple as programs and cameras write it: segments before the
# pixels of a JPEG and their total size, scans of a progressive JPEG (usually 10), entries of an EXIF directory (usually
# below 40), chunks of a PNG beside its pixels, and the average size of chunks with pixels (libpng writes 8192 bytes).
_MAX_SEGMENTS, _MAX_HEADER_BYTES, _MAX_SCANS = 100, 1 << 20, 20
_MAX_DIRECTORY, _MAX_CHUNKS, _MIN_CHUNK_BYTES = 100, 64, 2048
# Bytes of EXIF in a PNG; a JPEG has no segment that is larger.
_MAX_EXIF = 1 << 16
# A color profile with this type has a chain of operations of any length, each of which may refer to the same tables:
# 57 KB take minutes. Cameras and programs write matrices and tables.
_CHAIN_OF_OPERATIONS = b"mpet"
# JPEGs with more scans are not decoded at all: each scan passes over all pixels, but needs only a few bytes.
_MOST_SCANS = 100
# Markers of JPEG: start of a scan, end of the image, and start of a frame: baseline, extended, progressive.
_SCAN, _END, _FRAMES, _PROGRESSIVE = b"\xff\xda", b"\xff\xd9", (0xC0, 0xC1, 0xC2), 0xC2
# What ends the compressed pixels of a scan: any marker with a segment, or the end. Restarts (0xD0 to 0xD7) are a part
# of them, and libjpeg skips the markers below 0xC0.
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
# How many segments there may be from the first scan on: each scan usually has one or two tables.
_MAX_LATER_SEGMENTS = 4 * _MOST_SCANS
# Huffman and quantization tables, restart interval, comment.
_TABLES = (0xC4, 0xDB, 0xDD, 0xFE)
# The segment of JFIF, which says nothing about the pixels.
_JFIF = 0xE0
# A marker and the length of its segment; precision, height, width and components of a frame.
_read_segment, _read_frame = struct.Struct(">BBH").unpack_from, struct.Struct(">BHHB").unpack_from
_EXIF_START, _MPF_START = b"Exif\0\0", b"MPF\0"
_TEXT_CHUNKS, _EXIF_IN_TEXT = (b"tEXt", b"zTXt", b"iTXt"), b"Raw profile type"
# The largest buffer that Linux gives a pipe by default; images of megabytes pass through it faster.
_PIPE_BYTES = 1 << 20
# A message without its content has some hundred bytes.
_MAX_MESSAGE = 1 << 16
# glibc reserves this much for the stack of each thread; decoders start one per core.
_THREAD_STACK = 8 << 20
# How long after its time limit a worker process that lost its parent ends itself.
_ORPHAN_SECONDS = 1
# Memory pools for each thread, and BLAS threads, cost a worker process memory and time.
_WORKER_ENVIRONMENT = {"MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# Images larger by no more than this factor are not resized by area averaging, in which most pixels would be copied.
_NEAR_SIZE = 1.1
# Color transforms to keep: the images in a folder usually come from a few devices, each with one profile.
_CACHED_TRANSFORMS = 16

# Pillow warns about large images and unusual metadata. The filter is set once rather than around each call: filters
# belong to the process, so threads that change them at the same time would overwrite each other's.
warnings.filterwarnings("ignore", module=r"PIL\.")


def list_images(folder: Path) -> list[Path]:
    """Return the images in a folder and its subfolders, sorted; hidden files and system folders are skipped."""
    found = (path for path in folder.rglob("*") if is_image_name(path))
    return sorted(path for path in found if not is_hidden(path.relative_to(folder)))


def is_image_name(path: Path) -> bool:
    """Return whether a file name has the suffix of an image format."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_hidden(path: Path) -> bool:
    """Return whether a part of a path is hidden, or a system folder of a Mac or a NAS."""
    return any(part.startswith(".") or part in _SYSTEM_FOLDERS for part in path.parts if part not in (".", ".."))


def looks_like_image(start: bytes) -> bool:
    """Return whether the first bytes of a file (at least 12) are the signature of a supported image format.

    BMP is excepted: its signature, two letters, can begin a text.
    """
    return detect_format(start) not in (None, "BMP")


def detect_format(start: bytes) -> str | None:
    """Return Pillow's name of the format of a file that begins like this (at least 12 bytes); None if not supported."""
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    named = (name for signature, name in _SIGNATURES.items() if start.startswith(signature))
    return next(named, None) or _BRANDS.get(bytes(start[4:12])) or ("BMP" if start.startswith(_BMP_START) else None)


def read_image_file(name: str | Path) -> bytes:
    """Return the bytes of an image file.

    Raises:
        DataError: the file cannot be read, is not a regular file, or is too large.
    """
    try:
        status = os.stat(name)  # noqa: PTH116 - faster than Path for a million files
        if not stat.S_ISREG(status.st_mode):
            raise DataError("not a regular file")
        if status.st_size > MAX_BYTES:
            raise DataError(f"{status.st_size / 1e9:.1f} GB are too large for an image")
        with open(name, "rb", buffering=0) as file:  # noqa: PTH123
            return file.readall()
    except (FileNotFoundError, NotADirectoryError) as error:
        if "://" in str(name):
            raise DataError("a URL. agegen reads only local files: download it first.") from error
        raise DataError("no such file") from error
    except (OSError, ValueError) as error:
        raise DataError(getattr(error, "strerror", None) or str(error)) from error


@dataclass(frozen=True)
class Photo:
    """A decoded photo (height, width, 3), upright; ``scale`` is its size relative to the file."""

    image: RGB
    scale: float


def decode_image(content: bytes) -> RGB:
    """Decode an image to RGB (height, width, 3), uint8, upright according to its EXIF orientation.

    Transparency is composited over white, more than 8 bits per channel are scaled to 8, and only the first frame of an
    animation is decoded.

    Raises:
        DataError: the content is not an image, is damaged, or has more than 110 megapixels.
    """
    return decode_photo(content, None).image


def decode_photo(
    content: bytes,
    limit: int | None,
    enough: Callable[[int, int], int] | None = None,
    page: int = 0,
    seconds: float = DECODE_SECONDS,
) -> Photo:
    """Decode like :func:`decode_image`, to at most ``limit`` pixels on the longer side.

    A large JPEG is decoded directly at 1/2, 1/4 or 1/8 of its size, which saves time and memory: at the smallest of
    these sizes whose longer side has at least ``limit`` pixels, or ``enough(width, height)`` pixels if that is less.

    JPEGs and PNGs with a usual structure and profile are decoded here, all other images in another process, which is
    killed if it takes more than ``seconds``: their decoders can take minutes or any amount of memory, and a thread
    cannot be stopped.

    Raises:
        DataError: as for :func:`decode_image`.
    """

    def choose_side(width: int, height: int) -> int:
        longest = max(width, height)
        return min(limit or longest, longest, enough(width, height) if enough else longest)

    kind = _check_format(content)
    header = _read_simple_header(content, kind)
    if header is None or header.count_pixels(choose_side) > _LARGE_PIXELS:
        return _decode_in_worker(_select_page(content, page), kind, limit, choose_side, seconds)
    if header.plain and (image := _decode_plain_jpeg(content, header.choose_divisor(choose_side), header)) is not None:
        image = image if limit is None or max(image.shape[:2]) <= limit else _shrink(image, limit)
        return Photo(image, max(image.shape[:2]) / max(header.width, header.height))
    try:
        with _open(content, kind) as pil_image:
            if _CHAIN_OF_OPERATIONS not in (pil_image.info.get("icc_profile") or b""):
                return _render_photo(pil_image, limit, choose_side)
    except Exception as error:
        raise _explain(error, kind) from error
    return _decode_in_worker(content, kind, limit, choose_side, seconds)


def _check_format(content: bytes) -> str:
    """Return Pillow's name of an image's format.

    Raises:
        DataError: it is not supported, or its plugin is not installed.
    """
    kind = detect_format(content[:16])
    if kind is None:
        raise DataError("not a readable image (unknown format)")
    package, extra = _PLUGINS.get(kind, (None, ""))
    if package is not None and not _is_installed(package):
        raise DataError(f'{_TITLES[kind]} images require another package: pip install "agegen[{extra}]"')
    return kind


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # the import was tried before, and failed
        return False


def _open(content: bytes, kind: str) -> Image.Image:
    """Open an image with the plugin of one format, and no other; the caller has detected the format."""
    if kind == "HEIF":
        from pillow_heif import register_heif_opener

        register_heif_opener()
    elif kind == "JXL":
        import pillow_jxl  # noqa: F401 - the import registers it
    # Files with HEIC's general brands can contain AVIF.
    formats = ("AVIF", "HEIF") if kind == "HEIF" else (kind,)
    pil_image = Image.open(io.BytesIO(content), formats=formats)
    if pil_image.width * pil_image.height > MAX_PIXELS:
        raise DataError(f"{pil_image.width}×{pil_image.height} pixels are too many to decode")
    return pil_image


def _explain(error: Exception, kind: str) -> DataError:
    """Return the error for what was raised while an image was decoded; Pillow's plugins raise nearly any type.

    Their messages are for programmers, or instructions for building a library.
    """
    if isinstance(error, DataError):
        return error
    if isinstance(error, Image.DecompressionBombError):
        return DataError("too many pixels to decode")
    if isinstance(error, MemoryError):
        return DataError("decoding it takes too much memory")
    truncated = "truncated" in str(error).lower()
    return DataError(f"not a readable image ({'truncated' if truncated else 'damaged'} {_TITLES.get(kind, kind)})")


def _render_photo(pil_image: Image.Image, limit: int | None, choose_side: Callable[[int, int], int]) -> Photo:
    longest, needed = max(pil_image.size), choose_side(*pil_image.size)
    if needed < longest:
        width, height = (max(1, int(side * needed / longest)) for side in pil_image.size)
        pil_image.draft("RGB", (width, height))
    image = render_rgb(pil_image)
    if limit is not None and max(image.shape[:2]) > limit:
        image = _shrink(image, limit)
    return Photo(image, max(image.shape[:2]) / longest)


@dataclass(frozen=True)
class _SimpleHeader:
    """The size of an image with a usual structure; ``scalable``: it can be decoded at 1/2, 1/4 or 1/8 of it.

    ``plain``: a complete JPEG in YCbCr or gray without EXIF and color profile, so that its pixels are all that matters.
    """

    width: int
    height: int
    scalable: bool
    plain: bool = False

    def count_pixels(self, choose_side: Callable[[int, int], int]) -> int:
        """Return how many pixels are decoded to get those that are needed."""
        return self.width * self.height // self.choose_divisor(choose_side) ** 2

    def choose_divisor(self, choose_side: Callable[[int, int], int]) -> int:
        """Return by what the size is divided: 1, 2, 4 or 8."""
        longest = max(self.width, self.height)
        if not (self.scalable and longest):
            return 1
        needed = max(1, choose_side(self.width, self.height))
        return next((divisor for divisor in (8, 4, 2) if longest >= divisor * needed), 1)


def _read_simple_header(content: bytes, kind: str) -> _SimpleHeader | None:
    """Return the header of a JPEG or PNG with a usual structure, which is decoded in a short time; None for others."""
    read = {"JPEG": _read_jpeg_header, "PNG": _read_png_header}.get(kind)
    try:
        return None if read is None else read(content)
    except struct.error:  # truncated
        return None


def _read_jpeg_header(content: bytes) -> _SimpleHeader | None:
    """Walk through the segments before the first scan, and count the scans.

    Raises:
        DataError: there are too many.
    """
    position, frame, height, width, exif, plain = 2, 0, 0, 0, 0, True
    for _ in range(_MAX_SEGMENTS):
        fill, marker, length = _read_segment(content, position)
        body = position + 4
        if fill == 0xFF and marker == 0xDA:
            scans, complete = _count_scans(content, position)
            is_simple = frame and scans <= _MAX_SCANS
            once = frame != _PROGRESSIVE and scans == 1
            return _SimpleHeader(width, height, once, plain and once and complete) if is_simple else None
        if marker in _FRAMES:
            # Pillow uses the last of several frames, libjpeg refuses them.
            plain = plain and not frame
            frame, (precision, height, width, components) = marker, _read_frame(content, body)
            plain = plain and precision == 8 and components in (1, 3) and width > 0 < height
        known = fill == 0xFF and (marker in _FRAMES or marker in _TABLES or 0xE0 <= marker <= 0xEF)
        if not known or position > _MAX_HEADER_BYTES:
            return None
        if marker not in _TABLES and marker not in _FRAMES:
            exif += content.startswith(_EXIF_START, body)
            if exif > 1 or not _has_small_directory(content, body):
                return None
            plain = plain and marker == _JFIF
        position += 2 + length
    return None


def _count_scans(content: bytes, start: int) -> tuple[int, bool]:
    """Return the number of scans of a JPEG, and whether its end marker follows them.

    The segments between scans are skipped, because they may contain any bytes, also those of the end marker.

    Raises:
        DataError: decoding them would take long.
    """
    position, scans = start, 0
    for _ in range(_MAX_LATER_SEGMENTS):
        found = _MARKER.search(content, position)
        if found is None or found.group() == _END:
            return scans, found is not None
        scans += found.group() == _SCAN
        if scans > _MOST_SCANS:
            raise DataError(f"not a readable image (a JPEG with more than {_MOST_SCANS} scans)")
        position = found.end() + int(struct.unpack_from(">H", content, found.end())[0])
    return _MOST_SCANS, False


def _decode_plain_jpeg(content: bytes, divisor: int, header: _SimpleHeader) -> RGB | None:
    """Decode a plain JPEG with simplejpeg; None if anything is wrong with it, so that Pillow says what.

    Both use libjpeg-turbo and give the same pixels, but Pillow takes twice as long for a small image.
    """
    import simplejpeg

    width, height = -(-header.width // divisor), -(-header.height // divisor)
    with suppress(ValueError):
        image: RGB = simplejpeg.decode_jpeg(content, min_width=width, min_height=height)
        return image
    return None


def _has_small_directory(content: bytes, body: int) -> bool:
    """Return whether a segment's EXIF directory, if it has one, is small: each entry can refer to the whole segment."""
    for start in (_EXIF_START, _MPF_START):
        if content.startswith(start, body):
            return _count_entries(content, body + len(start)) <= _MAX_DIRECTORY
    return True


def _count_entries(content: bytes, start: int) -> int:
    """Return the number of entries in the first directory of a TIFF structure that begins at ``start``."""
    order = "<" if content.startswith(b"II", start) else ">"
    (first,) = struct.unpack_from(f"{order}I", content, start + 4)
    (entries,) = struct.unpack_from(f"{order}H", content, start + first)
    return int(entries)


def _read_png_header(content: bytes) -> _SimpleHeader | None:
    """Walk through the chunks."""
    name, width, height = struct.unpack_from(">4sII", content, 12)
    if name != b"IHDR":
        return None
    position, others, pixels = 8, 0, False
    for _ in range(_MAX_CHUNKS + len(content) // _MIN_CHUNK_BYTES):
        length, name = struct.unpack_from(">I4s", content, position)
        body = position + 8
        if name == b"IEND":
            return _SimpleHeader(width, height, False)
        others += name != b"IDAT"
        # Pillow uses the last of several headers, and profiles that come after the pixels.
        pixels |= name == b"IDAT"
        misplaced = (name == b"IHDR" and position > 8) or (name == b"iCCP" and pixels)
        exif_in_text = name in _TEXT_CHUNKS and content.startswith(_EXIF_IN_TEXT, body)
        large_exif = name == b"eXIf" and (length > _MAX_EXIF or _count_entries(content, body) > _MAX_DIRECTORY)
        if others > _MAX_CHUNKS or misplaced or exif_in_text or large_exif:
            return None
        position = body + length + 4
    return None


class WorkerProcess:
    """A Python process that works on untrusted data for this one and can be killed at any time.

    The two exchange messages: a JSON object and bytes. The process cannot write to the terminal, Ctrl-C does not reach
    it, and it ends when this process ends.
    """

    def __init__(self, main: str) -> None:
        """Start the process; it runs ``main``, written as ``module:function``.

        ``multiprocessing`` would import the main module of the program again, which has effects if it is a script.

        Raises:
            OSError: the process cannot be started.
        """
        module, _, function = main.partition(":")
        code = f"import sys; sys.path[:] = {sys.path!r}; from {module} import {function}; {function}()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | _WORKER_ENVIRONMENT,
            pipesize=_PIPE_BYTES,
            process_group=0 if os.name == "posix" else None,
        )

    @property
    def is_alive(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    def send(self, message: dict[str, Any], content: bytes = b"") -> None:
        """Send a message; raises OSError if the process has ended."""
        assert self._process.stdin is not None
        write_message(self._process.stdin, message, content)

    def receive(self, most: int = 0) -> tuple[dict[str, Any], bytes]:
        """Return the next message, with at most ``most`` bytes; raises EOFError if the process has ended."""
        assert self._process.stdout is not None
        received = read_message(self._process.stdout, most)
        if received is None:
            raise EOFError("the process has ended")
        return received

    @contextmanager
    def limit_time(self, seconds: float) -> Iterator[None]:
        """Kill the process if the context takes longer.

        Raises:
            TimeoutError: it did.
        """
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self._process.kill()

        timer = threading.Timer(seconds, expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (OSError, EOFError) as error:
            if expired.is_set():
                raise TimeoutError from error
            raise
        finally:
            timer.cancel()
            # Afterwards the timer kills nothing any more.
            timer.join()

    def stop(self) -> None:
        """Kill the process."""
        self._process.kill()
        with suppress(OSError):
            self._process.communicate()


class WorkerPool:
    """Worker processes, started when they are needed, and kept for the next task; thread-safe.

    ``exclusive`` is a lock for tasks of which only one may run at a time.
    """

    def __init__(self, main: str) -> None:
        """Create a pool without processes; for ``main`` see :class:`WorkerProcess`."""
        self._main = main
        self._forget()
        atexit.register(self._close)
        if hasattr(os, "register_at_fork"):
            # The processes belong to the parent of a fork, and a lock may be held by one of its threads.
            os.register_at_fork(after_in_child=self._forget)

    @contextmanager
    def borrow(self) -> Iterator[WorkerProcess]:
        """Return a process for the context; one whose task fails is killed, because it may still be busy with it."""
        worker = self._take()
        try:
            yield worker
        except BaseException:
            worker.stop()
            raise
        self._idle.append(worker)

    def _take(self) -> WorkerProcess:
        with suppress(IndexError):
            while not (worker := self._idle.pop()).is_alive:
                worker.stop()
            return worker
        return WorkerProcess(self._main)

    def _forget(self) -> None:
        self._idle: list[WorkerProcess] = []
        self.exclusive = threading.Lock()

    def _close(self) -> None:
        while self._idle:
            self._idle.pop().stop()


def write_message(stream: IO[bytes], message: dict[str, Any], content: Any = b"") -> None:
    """Write a message to a pipe: a line of JSON, then the bytes of the content."""
    size = memoryview(content).nbytes
    stream.write(json.dumps({**message, "bytes": size}).encode() + b"\n")
    if size:
        stream.write(content)
    stream.flush()


def read_message(stream: IO[bytes], most: int) -> tuple[dict[str, Any], bytes] | None:
    """Return the next message from a pipe and its content; None at the end of the stream.

    Raises:
        EOFError: the message is incomplete, or its content has more than ``most`` bytes.
    """
    line = stream.readline(_MAX_MESSAGE)
    if not line:
        return None
    try:
        message = json.loads(line)
        size = int(message["bytes"])
    except (ValueError, TypeError, KeyError) as error:
        raise EOFError("not a message") from error
    content = stream.read(size) if 0 <= size <= most else b""
    if len(content) != size:
        raise EOFError("the message is incomplete or too large")
    return message, content


def open_worker_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Return, in a worker process, the streams of its tasks and of its replies."""
    replies = os.fdopen(os.dup(1), "wb")
    # Native libraries may print to stdout.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with suppress(ImportError):
        import resource

        # A crash leaves no core dump in the working directory.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return sys.stdin.buffer, replies


def limit_worker(seconds: float | None, memory: int) -> None:
    """Limit this worker process: it ends itself if it is still busy ``seconds`` from now, in case its parent is dead.

    Args:
        seconds: None removes the limit.
        memory: how many bytes it may allocate beyond those that it has. Has no effect outside Linux.
    """
    if hasattr(signal, "alarm"):
        signal.alarm(0 if seconds is None else math.ceil(seconds) + _ORPHAN_SECONDS)
    with suppress(ImportError, OSError, ValueError):
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        allowed = used + memory + (os.cpu_count() or 1) * _THREAD_STACK
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, resource.getrlimit(resource.RLIMIT_DATA)[1]))


# Processes that decode the other images.
_WORKERS = WorkerPool("agegen.data.images:run_decoder")


def _decode_in_worker(
    content: bytes, kind: str, limit: int | None, choose_side: Callable[[int, int], int], seconds: float
) -> Photo:
    try:
        with _WORKERS.borrow() as worker:
            reply, pixels = _request_photo(worker, {"kind": kind, "limit": limit}, content, choose_side, seconds)
    except (OSError, EOFError) as error:
        raise _explain_end(error, kind, seconds) from error
    return Photo(_unpack_pixels(reply, pixels), reply["scale"])


def _request_photo(
    worker: WorkerProcess, task: dict[str, Any], content: bytes, choose_side: Callable[[int, int], int], seconds: float
) -> tuple[dict[str, Any], bytes]:
    """Send an image to a process; it replies with the size, receives the needed size, and replies with pixels."""
    with worker.limit_time(seconds):
        worker.send({"task": "photo", "seconds": seconds, **task}, content)
        opened, _ = worker.receive()
    if "error" in opened:
        return opened, b""
    width, height = opened["size"]
    large = width * height > _LARGE_PIXELS
    # Waiting for other large images does not count as decoding.
    with _WORKERS.exclusive if large else nullcontext(), worker.limit_time(seconds):
        worker.send({"side": choose_side(width, height), "large": large, "seconds": seconds})
        return worker.receive(_PIXEL_BYTES)


def _unpack_pixels(reply: dict[str, Any], pixels: bytes) -> RGB:
    """Return the image in the reply of a process.

    Raises:
        DataError: the reply is an error.
    """
    if "error" in reply:
        raise DataError(str(reply["error"]))
    height, width = reply["shape"]
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)


def _explain_end(error: Exception, kind: str, seconds: float) -> DataError:
    """Return the error for a process that was killed, crashed, or could not be started."""
    if isinstance(error, TimeoutError):
        return DataError(f"decoding it takes more than {seconds:g} seconds")
    if isinstance(error, EOFError | BrokenPipeError):
        return _explain(error, kind)
    return DataError(f"cannot start a process that decodes it: {error}")


def is_animated(content: bytes, seconds: float = DECODE_SECONDS) -> bool:
    """Return whether an image has more than one frame; False if it cannot be read."""
    kind = detect_format(content[:16])
    # Chunks that each animation has; looking for them is faster than starting a process.
    if (kind == "PNG" and b"acTL" not in content) or (kind == "WEBP" and b"ANIM" not in content):
        return False
    try:
        with _WORKERS.borrow() as worker, worker.limit_time(seconds):
            worker.send({"task": "animated", "kind": _check_format(content), "seconds": seconds}, content)
            return bool(worker.receive()[0].get("animated"))
    except (DataError, OSError, EOFError):  # decoding it reports what is wrong
        return False


def decode_frames(content: bytes, seconds: float = DECODE_SECONDS) -> Iterator[tuple[float, RGB]]:
    """Yield (duration in milliseconds, frame) of all frames of an animation; the duration is 0 if it is not specified.

    Args:
        content: a GIF, WebP or PNG.
        seconds: how long each frame may take.

    Raises:
        DataError: the next frame cannot be read.
    """
    kind = _check_format(content)
    try:
        with _WORKERS.borrow() as worker:
            with worker.limit_time(seconds):
                worker.send({"task": "frames", "kind": kind, "seconds": seconds}, content)
            while True:
                with worker.limit_time(seconds):
                    worker.send({"seconds": seconds})
                    reply, pixels = worker.receive(_PIXEL_BYTES)
                if "end" in reply:
                    return
                frame = _unpack_pixels(reply, pixels)
                yield reply["duration"], frame
    except (OSError, EOFError) as error:
        raise _explain_end(error, kind, seconds) from error


def run_decoder() -> None:
    """Decode images for another process: the main function of a :class:`agegen.data.images.WorkerProcess`."""
    tasks, replies = open_worker_streams()
    work = {"photo": _work_on_photo, "animated": _work_on_animated, "frames": _work_on_frames}
    while (received := read_message(tasks, MAX_BYTES)) is not None:
        task, content = received
        limit_worker(task["seconds"], _SMALL_MEMORY)
        try:
            for reply, pixels in work[task["task"]](task, content, tasks):
                write_message(replies, reply, pixels)
        except Exception as error:
            write_message(replies, {"error": str(_explain(error, task["kind"]))})
        limit_worker(None, _SMALL_MEMORY)


# A reply and the pixels that it contains, if any.
_Reply = tuple[dict[str, Any], RGB | bytes]


def _work_on_photo(task: dict[str, Any], content: bytes, tasks: IO[bytes]) -> Iterator[_Reply]:
    with _open(content, task["kind"]) as pil_image:
        limit_worker(None, _SMALL_MEMORY)
        yield {"size": pil_image.size}, b""
        wanted = _read_wish(tasks)
        limit_worker(wanted["seconds"], _LARGE_MEMORY if wanted["large"] else _SMALL_MEMORY)
        photo = _render_photo(pil_image, task["limit"], lambda *_: int(wanted["side"]))
    yield {"shape": photo.image.shape[:2], "scale": photo.scale}, np.ascontiguousarray(photo.image)


def _work_on_animated(task: dict[str, Any], content: bytes, _: IO[bytes]) -> Iterator[_Reply]:
    with _open(content, task["kind"]) as pil_image:
        yield {"animated": bool(getattr(pil_image, "is_animated", False))}, b""


def _work_on_frames(task: dict[str, Any], content: bytes, tasks: IO[bytes]) -> Iterator[_Reply]:
    with _open(content, task["kind"]) as pil_image:
        for frame in ImageSequence.Iterator(pil_image):
            limit_worker(None, _SMALL_MEMORY)
            limit_worker(_read_wish(tasks)["seconds"], _SMALL_MEMORY)
            image = render_rgb(frame)
            duration = float(frame.info.get("duration") or 0)
            yield {"shape": image.shape[:2], "duration": duration}, np.ascontiguousarray(image)
    _read_wish(tasks)
    yield {"end": True}, b""


def _read_wish(tasks: IO[bytes]) -> dict[str, Any]:
    """Return what the other process wants next."""
    received = read_message(tasks, 0)
    if received is None:
        raise SystemExit
    return received[0]


def _shrink(image: RGB, limit: int) -> RGB:
    import cv2

    scale = limit / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    shrunk: RGB = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return shrunk


def resize_image(image: RGB, size: int) -> RGB:
    """Resize to a (size, size, 3) square; by area averaging when shrinking, bicubic when enlarging.

    Bilinear if the image is hardly larger, as crops decoded at half their size are: that takes a fifth of the time.
    """
    import cv2

    if image.shape[:2] == (size, size):
        return image
    near = size <= min(image.shape[:2]) and max(image.shape[:2]) <= _NEAR_SIZE * size
    shrinking = cv2.INTER_LINEAR if near else cv2.INTER_AREA
    method = shrinking if min(image.shape[:2]) >= size else cv2.INTER_CUBIC
    resized: RGB = cv2.resize(image, (size, size), interpolation=method)
    return resized


def count_pages(content: bytes, most: int) -> int:
    """Return the number of pages of an image, ``most`` if it has more; only TIFFs, from scanners, can have several.

    The previews and depth maps that cameras add to a photo are not pages, nor are the frames of animations.
    """
    return max(1, sum(1 for _ in islice(_find_pages(content), most)))


def _find_pages(content: bytes) -> Iterator[int]:
    """Yield the positions of the directories of a TIFF, each of which describes a page and contains the next position.

    Pillow searches for each page from the start, which takes minutes for thousands.
    """
    if detect_format(content[:4]) != "TIFF":
        return
    order = "<" if content.startswith(b"II") else ">"
    count, offset, entry, place = ("Q", "Q", 20, 8) if _is_big_tiff(content) else ("H", "I", 12, 4)
    found: set[int] = set()
    try:
        while True:
            (position,) = struct.unpack_from(order + offset, content, place)
            if position == 0 or position in found:
                return
            (entries,) = struct.unpack_from(order + count, content, position)
            found.add(position)
            yield position
            place = position + struct.calcsize(f"={count}") + entry * entries
    except (struct.error, OverflowError):  # the next page is outside the file
        return


def _is_big_tiff(content: bytes) -> bool:
    return b"+" in content[2:4]


def _select_page(content: bytes, page: int) -> bytes:
    """Return a TIFF whose first page is another of its pages, numbered from 0."""
    position = next(islice(_find_pages(content), page, None), None) if page else None
    if position is None:
        return content
    order = "<" if content.startswith(b"II") else ">"
    if _is_big_tiff(content):
        return content[:8] + struct.pack(f"{order}Q", position) + content[16:]
    return content[:4] + struct.pack(f"{order}I", position) + content[8:]


def render_rgb(pil_image: Image.Image) -> RGB:
    """Return an image as RGB (height, width, 3), uint8, in sRGB.

    It is upright according to its EXIF orientation, and transparency is composited over white. Large images are
    converted in bands, which take little memory.
    """
    inverted = _has_non_adobe_inks(pil_image)
    pil_image.load()
    orientation = _read_orientation(pil_image)
    rows = max(1, _BAND_PIXELS // max(1, pil_image.width))
    if pil_image.height <= rows:
        return _orient(_convert_band(pil_image, inverted, None), orientation)
    is_deep = pil_image.mode.startswith(("I", "F"))
    white = max(choose_white(np.asarray(band)) for band in _cut_bands(pil_image, rows)) if is_deep else None
    image = np.empty((pil_image.height, pil_image.width, 3), np.uint8)
    for number, band in enumerate(_cut_bands(pil_image, rows)):
        image[number * rows : (number + 1) * rows] = _convert_band(band, inverted, white)
    return _orient(image, orientation)


def _cut_bands(pil_image: Image.Image, rows: int) -> Iterator[Image.Image]:
    for top in range(0, pil_image.height, rows):
        yield pil_image.crop((0, top, pil_image.width, min(top + rows, pil_image.height)))


def _convert_band(band: Image.Image, inverted: bool, white: float | None) -> RGB:
    return np.asarray(_convert_mode(convert_to_srgb(_invert_inks(band) if inverted else band), white))


def _read_orientation(pil_image: Image.Image) -> int:
    try:
        return int(pil_image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata is not a reason to reject the image
        return 1


def _orient(image: RGB, orientation: int) -> RGB:
    """Return an image turned and mirrored as EXIF defines it; 1 means that it is upright."""
    if orientation in (2, 3, 7, 8):
        image = image[:, ::-1]
    if orientation in (3, 4, 6, 7):
        image = image[::-1]
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    return np.ascontiguousarray(image)


def _has_non_adobe_inks(pil_image: Image.Image) -> bool:
    """Return whether 255 means full ink in a CMYK JPEG. In Adobe's it means none, which Pillow assumes for all."""
    return pil_image.format == "JPEG" and pil_image.mode == "CMYK" and "adobe" not in pil_image.info


def _invert_inks(pil_image: Image.Image) -> Image.Image:
    inverted = ImageChops.invert(pil_image)
    inverted.info = dict(pil_image.info)
    return inverted


def convert_to_srgb(pil_image: Image.Image) -> Image.Image:
    """Return an image with a color profile (Display P3, Adobe RGB, a CMYK press) as RGB in sRGB.

    Images without a profile, or with a damaged one, are returned unchanged.
    """
    profile = pil_image.info.get("icc_profile")
    if not profile or pil_image.mode not in ("RGB", "CMYK"):
        return pil_image
    transform = _build_transform(profile, pil_image.mode)
    if transform is None:
        return pil_image
    converted: Image.Image = transform.apply(pil_image)
    # Without its profile, the image is not converted again.
    converted.info = {name: value for name, value in pil_image.info.items() if name != "icc_profile"}
    return converted


@lru_cache(_CACHED_TRANSFORMS)
def _build_transform(profile: bytes, mode: str) -> Any:
    """Return the transform from a profile to sRGB; None if the profile is sRGB or invalid."""
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(source)
        if mode == "RGB" and "srgb" in name.lower():
            return None
        # NOCACHE makes a transform safe to share between threads: otherwise it remembers the last pixel.
        return ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, "RGB", flags=ImageCms.Flags.NOCACHE
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _convert_mode(pil_image: Image.Image, white: float | None = None) -> Image.Image:
    if pil_image.mode.startswith(("I", "F")):
        # Pillow clips grayscale with more than 8 bits at 255 instead of scaling it.
        return Image.fromarray(scale_to_8_bits(np.asarray(pil_image), white)).convert("RGB")
    if pil_image.has_transparency_data:
        rgba = pil_image.convert("RGBA")
        background = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(background, rgba).convert("RGB")
    return pil_image.convert("RGB")


def scale_to_8_bits(values: NDArray[Any], white: float | None = None) -> NDArray[np.uint8]:
    """Scale values of more than 8 bits to 0–255; ``white`` by default as :func:`choose_white` chooses it.

    Non-finite values become 0.
    """
    white = choose_white(values) if white is None else white
    return np.asarray((_remove_non_finite(values) * (255.0 / white)).round().clip(0, 255), dtype=np.uint8)


def choose_white(values: NDArray[Any]) -> float:
    """Return the value of white: floats range over 0–1 or 0–255, integers over the bits that they use.

    Cameras store 10, 12 or 14 bits in 16, and scientific images 0–1 in floats; scaled by their type, all of these would
    be black.
    """
    largest = float(_remove_non_finite(values).max()) if values.size else 0.0
    whites = _FLOAT_WHITES if np.issubdtype(values.dtype, np.floating) else _INTEGER_WHITES
    # For larger floats, and integers of 32 bits, white is the largest value.
    return next((white for limit, white in whites if largest <= limit), largest)


def _remove_non_finite(values: NDArray[Any]) -> NDArray[np.float64]:
    numbers: NDArray[np.float64] = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0).clip(min=0)
    return numbers
