"""A self-contained HTML page of predicted faces, written as the predictions arrive.

The rows and thumbnails of the faces are appended to a temporary file next to the page (``faces.html.part``), from which
the page is made at the end, or when the prediction is interrupted. So memory use does not depend on their number.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar
from urllib.parse import quote

from agegen.data.images import RGB, resize_image
from agegen.data.labels import MAX_AGE
from agegen.errors import AgegenError, escape_controls, shorten
from agegen.files import replace_atomically
from agegen.render.html import render_page

T = TypeVar("T")

# The side of a thumbnail in pixels: the input size of the small models, enough to judge an estimate.
THUMBNAIL_SIDE = 96
# JPEG's quality: a thumbnail takes about 2 kB, and hardly more time to encode than to copy. WebP takes two thirds of
# the space, but four times as long.
_QUALITY = 75
# The faces of a page take at most this many bytes: about 15,000 with their thumbnails. Browsers open such a page in
# about a second, and mail and chat programs still accept it when it is compressed.
MAX_BYTES = 50_000_000
# Files in the list of those without a face; more would not be read.
MAX_PROBLEMS = 1000
# Inputs in the title.
_INPUTS_SHOWN = 3
# Years per bar of the histogram.
BIN_YEARS = 5
# Upright faces in close-ups score above 0.9 with yunet. Below this, they are turned or covered, or are not faces.
_LOW_SCORE = 0.8
UNCERTAIN_GENDER, LOW_SCORE = "uncertain gender", "low detection score"
# What the page shows of a row, if it is known.
_SHOWN = (
    *("face", "page", "person", "time", "first", "last", "frames"),
    *("age", "age_low", "age_high", "gender", "p_female", "score", "box"),
)
# Where the faces and the hashes of the scripts are inserted into the rendered page.
_DATA_MARK, _CSP_MARK = "%%FACES%%", "%%SCRIPTS%%"


# json.dumps would create an encoder for each face. Its JSON is ASCII.
_encode_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True)
class GalleryAbout:
    """What the page says about the prediction: its inputs, model, detector and non-default options."""

    inputs: Sequence[str]
    model: str
    detector: str
    options: str = ""


@dataclass(frozen=True)
class Thumbnail:
    """A JPEG in base64, and the width and height in pixels of the upright photo, if they are known."""

    data: str
    width: int | None = None
    height: int | None = None


@dataclass
class AgeBin:
    """A bar of the histogram: the number of faces, and the sums of their intervals' limits in years."""

    count: int = 0
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class ProblemFile:
    """A file without a face, or an unreadable one with the reason."""

    file: str
    reason: str


class GalleryTally:
    """Counts of all faces and files, including those that the page does not show.

    Attributes:
        files: number of files, and ``faces`` of faces.
        bins: the histogram of the estimated ages; ``without_age`` counts faces of models that estimate none.
        genders: number of faces by ``female``, ``male`` and ``uncertain``.
        problems: the first files without a face or unreadable; ``no_face`` and ``unreadable`` count all of them.
    """

    def __init__(self) -> None:
        self.files = self.faces = self.no_face = self.unreadable = self.without_age = 0
        self.bins = [AgeBin() for _ in range(MAX_AGE // BIN_YEARS + 1)]
        self.genders: Counter[str] = Counter()
        self.problems: list[ProblemFile] = []
        self._file: str | None = None
        self._faces = 0
        self._reasons: list[str] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row; those of a file (its faces, pages or frames) must follow each other."""
        if row["file"] != self._file:
            self.end_file()
            self._file, self._faces, self._reasons = str(row["file"]), 0, []
            self.files += 1
        if row["status"] == "unreadable" and (reason := str(row.get("reason") or "unreadable")) not in self._reasons:
            self._reasons.append(reason)
        if row.get("face") is not None:
            self._faces += 1
            self._add_face(row)

    def end_file(self) -> None:
        """Note whether the last file has no face, or is unreadable."""
        if self._file is None or (self._faces and not self._reasons):
            return
        self.unreadable += bool(self._reasons)
        self.no_face += not self._reasons
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(ProblemFile(_clean(self._file), _clean("; ".join(self._reasons) or "no face")))

    def _add_face(self, row: Mapping[str, Any]) -> None:
        self.faces += 1
        self.genders[str(row.get("gender"))] += 1
        if row.get("age") is None:
            self.without_age += 1
            return
        one = self.bins[min(max(int(row["age"] // BIN_YEARS), 0), len(self.bins) - 1)]
        one.count += 1
        one.low += row["age_low"]
        one.high += row["age_high"]

    def to_json(self) -> dict[str, Any]:
        """Return what the scripts of the page need."""
        bins = [
            {"count": one.count, "low": round(one.low / one.count, 1), "high": round(one.high / one.count, 1)}
            if one.count
            else {"count": 0}
            for one in self.bins
        ]
        return {"bins": bins, "years": BIN_YEARS}


@dataclass
class _Sample(Generic[T]):
    """The values with the smallest keys that take at most ``limit`` bytes together.

    If the keys are hashes, they are a random sample, and always the same one of the same faces.
    """

    limit: int
    size: int = 0
    heap: list[tuple[int, int, int, T]] = field(default_factory=list)
    largest: int | None = None
    count: int = 0

    def accepts(self, key: int) -> bool:
        """Return whether a value with this key can be part of the sample."""
        return self.largest is None or key < self.largest

    def add(self, key: int, size: int, value: T) -> None:
        """Add a value of ``size`` bytes; values with larger keys may drop out."""
        if not self.accepts(key):
            return
        self.count += 1
        heapq.heappush(self.heap, (-key, self.count, size, value))
        self.size += size
        while self.size > self.limit:
            negative, _, freed, _ = heapq.heappop(self.heap)
            self.largest, self.size = -negative, self.size - freed

    def values(self) -> list[T]:
        """Return the values in the order in which they were added."""
        return [value for _, _, _, value in sorted(self.heap, key=lambda entry: entry[1])]


class GalleryWriter:
    """Collects rows for a page; see :func:`open_gallery`."""

    def __init__(
        self,
        path: Path,
        about: GalleryAbout,
        spool: BinaryIO,
        known: Mapping[int, Thumbnail],
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Create a writer.

        Args:
            path: the page.
            about: what it says about the prediction.
            spool: an empty or continued file for what the page shows, open for reading and appending.
            known: thumbnails of an earlier part of the prediction, by the key of the face.
            max_bytes: of the faces on the page.
        """
        self.tally = GalleryTally()
        self._path, self._about, self._spool, self._known = path, about, spool, known
        # Positions in the spool: offset and length.
        self._sample: _Sample[tuple[int, int]] = _Sample(max_bytes)
        self._end = spool.seek(0, io.SEEK_END)
        self._folder = os.path.realpath(path.parent)

    def add(self, row: Mapping[str, Any], crop: RGB | None = None, size: tuple[int, int] | None = None) -> None:
        """Add a row of the output, in its JSON form.

        Args:
            row: all rows of a file must follow each other.
            crop: the aligned crop of the face (height, width, 3); None means that of an earlier part, if there is one.
            size: width and height of the upright photo in pixels, if they are known.
        """
        self.tally.add(row)
        key = _hash_face(row)
        if row.get("face") is None or not self._sample.accepts(key):
            return
        thumbnail = self._known.get(key) if crop is None else encode_thumbnail(crop, size)
        face = {"key": f"{key:016x}", **_describe_face(row, self._folder), **_describe_thumbnail(thumbnail)}
        line = dump_safely(face).encode()
        self._sample.add(key, len(line), (self._end, len(line)))
        self._end += self._spool.write(line + b"\n")

    def flush(self) -> None:
        """Write what is buffered to the spool, where it survives a killed process."""
        self._spool.flush()

    def finish(self, complete: bool) -> None:
        """Write the page; it says so if it is not ``complete``.

        Raises:
            AgegenError: it cannot be written.
        """
        self.tally.end_file()
        places = self._sample.values()
        start, end = self._render(len(places), complete)
        with replace_atomically(self._path) as temporary, temporary.open("wb") as file:
            file.write(start)
            for index, (offset, length) in enumerate(places):
                self._spool.seek(offset)
                file.write((b",\n" if index else b"") + self._spool.read(length))
            file.write(end)

    def _render(self, shown: int, complete: bool) -> tuple[bytes, bytes]:
        """Return the page before and after the faces."""
        about = self._about
        page = render_page(
            "gallery.html.j2",
            title=_list_inputs(about.inputs),
            model=_clean(about.model),
            detector=about.detector,
            options=_clean(about.options),
            tally=self.tally,
            shares=_list_shares(self.tally),
            years=BIN_YEARS,
            shown=shown,
            complete=complete,
            csp_mark=_CSP_MARK,
            data_mark=_DATA_MARK,
        )
        # Names on the page cannot contain the marks' surroundings, because quotation marks are escaped in them.
        page = page.replace(f"script-src '{_CSP_MARK}'", f"script-src {_hash_scripts(page)}", 1)
        start, _, end = page.partition(f'id="data">{_DATA_MARK}')
        opening = f'{start}id="data">{{"summary": {dump_safely(self.tally.to_json())}, "faces": [\n'
        return opening.encode(), f"\n]}}{end}".encode()


@contextmanager
def open_gallery(
    path: Path, about: GalleryAbout, resume: bool = False, max_bytes: int = MAX_BYTES
) -> Iterator[GalleryWriter]:
    """Open a writer of a page, which is written at the end; after an interruption, it says that it is incomplete.

    With ``resume``, the thumbnails of the existing page, and of what a killed process left, are known to the writer.

    Raises:
        AgegenError: a file cannot be written.
    """
    part = path.with_name(path.name + ".part")
    known = _read_thumbnails([path, part], max_bytes) if resume else {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        spool = part.open("a+b" if resume else "w+b")
    except OSError as error:
        raise AgegenError(f"cannot write {part}: {error.strerror or error}") from error
    with spool:
        # The last line of a killed process may be incomplete.
        spool.write(b"\n" if resume else b"")
        writer = GalleryWriter(path, about, spool, known, max_bytes)
        try:
            yield writer
        except BaseException:
            writer.finish(complete=False)
            part.unlink(missing_ok=True)
            raise
        writer.finish(complete=True)
    part.unlink(missing_ok=True)


def encode_thumbnail(crop: RGB, size: tuple[int, int] | None = None) -> Thumbnail:
    """Return an aligned crop (height, width, 3) as a thumbnail; ``size`` is that of the photo."""
    from PIL import Image

    small = crop if max(crop.shape[:2]) <= THUMBNAIL_SIDE else resize_image(crop, THUMBNAIL_SIDE)
    stream = io.BytesIO()
    Image.fromarray(small).save(stream, "JPEG", quality=_QUALITY, optimize=True)
    return Thumbnail(base64.b64encode(stream.getvalue()).decode(), *(size or ()))


def list_doubts(row: Mapping[str, Any]) -> list[str]:
    """Return why a row is doubtful: the reasons in the row itself, an uncertain gender, a low detection score."""
    own = row.get("doubts") or ()
    doubts = [text.strip() for text in own.split(";")] if isinstance(own, str) else [str(text) for text in own]
    if row.get("gender") == "uncertain":
        doubts.append(UNCERTAIN_GENDER)
    if row.get("score") is not None and row["score"] < _LOW_SCORE:
        doubts.append(LOW_SCORE)
    return [_clean(text) for text in dict.fromkeys(doubts)]


def make_link(file: str, folder: str) -> str | None:
    """Return the relative URL of a file at or below the resolved folder of a page; None if it lies elsewhere."""
    directory, name = os.path.split(file)
    resolved = os.path.join(_resolve_folder(directory, os.getcwd()), name)  # noqa: PTH109, PTH118 - bytes of any name
    if not os.path.isfile(resolved) or Path(folder) not in Path(resolved).parents:  # noqa: PTH113
        return None
    relative = os.path.relpath(resolved, folder).replace(os.sep, "/")
    # The prefix keeps a name such as "data:x" from being an address.
    return "./" + quote(os.fsencode(relative))


def dump_safely(value: Any) -> str:
    """Return JSON in ASCII that can stand in a ``<script>`` element: nothing in it ends the element."""
    text = _encode_json(value)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@lru_cache(1024)
def _resolve_folder(directory: str, current: str) -> str:
    return os.path.realpath(os.path.join(current, directory))  # noqa: PTH118


def _describe_face(row: Mapping[str, Any], folder: str) -> dict[str, Any]:
    face = {name: row[name] for name in _SHOWN if row.get(name) is not None}
    face["file"] = _clean(str(row["file"]))
    if (link := make_link(str(row["file"]), folder)) is not None:
        face["href"] = link
    if doubts := list_doubts(row):
        face["doubts"] = doubts
    return face


def _describe_thumbnail(thumbnail: Thumbnail | None) -> dict[str, Any]:
    if thumbnail is None:
        return {}
    size = {"width": thumbnail.width, "height": thumbnail.height} if thumbnail.width else {}
    return {**size, "thumb": thumbnail.data}


def _hash_face(row: Mapping[str, Any]) -> int:
    """Return a number of 64 bits that identifies a face in an output."""
    name = "\0".join(str(row.get(key)) for key in ("page", "time", "face", "file"))
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", errors="surrogateescape")).digest()[:8], "big")


def _clean(text: str) -> str:
    """Return untrusted text without control characters and without bytes that are not UTF-8."""
    # Few names have any, and this test takes a hundredth of the time.
    if text.isprintable():
        return text
    return escape_controls(text.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="replace"))


def _list_inputs(inputs: Sequence[str]) -> str:
    """Return the names of the first inputs for the title; a shell may have expanded a glob to thousands."""
    names = ["stdin" if name == "-" else shorten(_clean(name)) for name in inputs[:_INPUTS_SHOWN]]
    more = len(inputs) - len(names)
    return ", ".join(names) + (f" and {more:,} more" if more else "")


def _list_shares(tally: GalleryTally) -> list[tuple[str, int, float]]:
    """Return (gender, number of faces, per cent) of all faces."""
    names = ("female", "male", "uncertain")
    return [(name, tally.genders[name], 100 * tally.genders[name] / max(tally.faces, 1)) for name in names]


def _hash_scripts(page: str) -> str:
    """Return the sources of a Content Security Policy that allow exactly the scripts of a page."""
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    return " ".join(f"'sha256-{digest}'" for digest in digests)


def _read_thumbnails(paths: Iterable[Path], max_bytes: int) -> dict[int, Thumbnail]:
    """Return the thumbnails in a page and a spool, by key: those that a page of this size can show."""
    sample: _Sample[tuple[int, Thumbnail]] = _Sample(max_bytes)
    for path in paths:
        with suppress(OSError):
            for line in _read_lines(path):
                with suppress(ValueError, KeyError, TypeError):
                    key, thumbnail = _parse_face(line)
                    sample.add(key, len(thumbnail.data), (key, thumbnail))
    return dict(sample.values())


def _read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a spool, or those of a page with a face each."""
    with path.open("rb") as file:
        for line in file:
            yield line.rstrip(b",\n")


def _parse_face(line: bytes) -> tuple[int, Thumbnail]:
    """Return key and thumbnail of a line of JSON; raises ValueError, KeyError or TypeError for any other line."""
    if not line.startswith(b'{"key":"'):
        raise ValueError("not a face")
    face = json.loads(line)
    data, width, height = face["thumb"], face.get("width"), face.get("height")
    base64.b64decode(data, validate=True)
    if not (isinstance(width, int | None) and isinstance(height, int | None)):
        raise TypeError("a size must be a number")
    return int(face["key"], 16), Thumbnail(data, width, height)
