"""Files: atomic writes, JSON, checksums, the cache folder, and the sample portrait bundled with matplotlib."""

from __future__ import annotations

import glob
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from agegen.errors import AgegenError, shorten

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# A temporary file this old was left behind by a process that was killed: no write takes a day.
_STALE_SECONDS = 24 * 3600.0
# A younger one was left behind if nobody holds its lock; its writer acquires the lock right after creating it.
_LOCKED_SECONDS = 1.0
# Read once, at import: the only way to read the umask is to set it, for all threads of the process.
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; rename it to ``path`` on success, delete it on failure.

    The temporary name keeps the suffix, because some writers choose their format by it.

    Raises:
        AgegenError: the folder cannot be created or written to, or the disk is full.
    """
    temporary: Path | None = None
    with ExitStack() as stack:
        with _convert_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _delete_stale_files(path)
            handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
            temporary = Path(name)
            stack.callback(temporary.unlink, missing_ok=True)
            _keep_locked(handle, stack)
        try:
            yield temporary
        except OSError as error:
            # Convert only errors of the file that is written; the body may also fail for other reasons.
            if error.filename in (None, str(temporary), temporary):
                raise _make_write_error(path, error) from error
            raise
        with _convert_os_errors(path):
            temporary.chmod(0o666 & ~_UMASK)
            temporary.replace(path)


def _keep_locked(handle: int, stack: ExitStack) -> None:
    """Lock a temporary file until ``stack`` closes, or this process dies; without such locks, close it at once."""
    if fcntl is None:
        os.close(handle)
        return
    stack.callback(os.close, handle)
    # Some network file systems have no locks; there, only old files are deleted.
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_abandoned(temporary: Path) -> bool:
    """Return whether the process that wrote a temporary file is dead."""
    age = time.time() - temporary.stat().st_mtime
    if age > _STALE_SECONDS:
        return True
    if fcntl is None or age < _LOCKED_SECONDS:
        return False
    with temporary.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


@contextmanager
def _convert_os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _make_write_error(path, error) from error


def _make_write_error(path: Path, error: OSError) -> AgegenError:
    return AgegenError(f"cannot write {path}: {error.strerror or error}")


def _delete_stale_files(path: Path) -> None:
    """Delete temporary files for the same target that a killed process left behind."""
    for stale in path.parent.glob(f".{glob.escape(path.stem)}-????????{glob.escape(path.suffix)}"):
        with suppress(OSError):
            if _is_abandoned(stale):
                stale.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically: readers see either the old file or the complete new one."""
    with replace_atomically(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, content.encode("utf-8", errors="surrogateescape"))


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, format_json(content))


def format_json(content: Any) -> str:
    """Return indented JSON with a final newline; raises ValueError on NaN, which JSON does not allow."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


class Limits(NamedTuple):
    """Bounds of a number, for :func:`find_mismatch`: ``Annotated[int, Limits(min=1)]``."""

    min: float | None = None
    max: float | None = None


class Check(NamedTuple):
    """What else a value must meet, for :func:`find_mismatch`; ``words`` describe the accepted values in errors."""

    words: str
    accepts: Callable[[Any], bool]


class Schema:
    """Base of classes that only describe an object in JSON, by annotated fields, for :func:`find_mismatch`.

    They need not be dataclasses, whose methods take long to make. ``others`` is the type of entries with any other
    name, or a function from name to type; None forbids them.
    """

    def __init_subclass__(cls, others: Any = Any) -> None:
        _OTHERS[cls] = others


# The default of a field of a schema that may be missing, as in files of older versions.
ABSENT: Any = None
_OTHERS: dict[Any, Any] = {}
ShortText = Annotated[str, Check("a printable text of at most 200 characters", lambda one: one == shorten(str(one)))]
# What JSON holds for a type, and how an error calls it.
_JSON_TYPES: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int,), "an integer"),
    float: ((int, float), "a number"),
    str: ((str,), "text"),
    Path: ((str,), "text"),
    bool: ((bool,), "true or false"),
    dict: ((dict,), "an object"),
    list: ((list, tuple), "a list"),
    tuple: ((list, tuple), "a list"),
    type(None): ((type(None),), "null"),
}


def find_mismatch(value: Any, kind: Any, name: str = "") -> str | None:
    """Return how a value from JSON differs from a type, in one line that names field and value; None if it fits.

    Args:
        value: parsed JSON; lists may be tuples.
        kind: ``int``, ``float`` (finite), ``str``, ``bool``, ``Path``, lists, tuples, dicts, unions and literals of
            them, ``Any``, or a :class:`Schema` or dataclass: an object with its fields, of which those with a default
            may be missing. ``Annotated`` may hold limits (anything with ``min`` and ``max``), checks, and a schema.
        name: of the value, for the text.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return None
    if origin is Annotated:
        # First, because a check may refuse a list at once that would take long to compare.
        broken = (_break_rule(value, rule, name) for rule in arguments[1:])
        return next(filter(None, broken), None) or find_mismatch(value, arguments[0], name)
    if origin in (Union, UnionType):
        mismatches = [find_mismatch(value, one, name) for one in arguments]
        return None if None in mismatches else mismatches[0]
    if origin is Literal:
        return None if value in arguments else _phrase_mismatch(name, value, f"one of {', '.join(map(str, arguments))}")
    described = is_dataclass(kind) or kind in _OTHERS
    if (found := _compare_type(value, dict if described else origin or kind, name)) or not (described or origin):
        return found
    if described:
        return _find_field_mismatch(value, kind, name)
    if origin is tuple and Ellipsis not in arguments:
        if len(value) != len(arguments):
            return _phrase_mismatch(name, value, f"a list of {len(arguments)}")
        parts = (find_mismatch(item, one, name) for item, one in zip(value, arguments, strict=True))
    elif origin is dict:
        parts = (find_mismatch(item, arguments[1], _join_names(name, key)) for key, item in value.items())
    else:
        parts = (find_mismatch(item, arguments[0], name) for item in value)
    return next(filter(None, parts), None)


def _find_field_mismatch(value: dict[str, Any], kind: Any, name: str) -> str | None:
    (hints, required), others = _list_fields(kind), _OTHERS.get(kind, Any)
    for key, item in value.items():
        inner = _join_names(name, key)
        expected = hints.get(key) or (others(key) if isinstance(others, FunctionType) else others)
        if found := find_mismatch(item, expected, inner) if expected else f"'{inner}' is unknown":
            return found
    return next((f"'{_join_names(name, field)}' is missing" for field in required if field not in value), None)


@cache
def _list_fields(kind: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the types of a class's fields by name, and the names of those without a default."""
    hints = get_type_hints(kind, include_extras=True)
    made = [one.name for one in fields(kind) if one.default_factory is not MISSING] if is_dataclass(kind) else ()
    return hints, [name for name in hints if not hasattr(kind, name) and name not in made]


def _compare_type(value: Any, kind: type, name: str) -> str | None:
    types, words = _JSON_TYPES[kind]
    # True is an int for Python. The bounds also exclude NaN, infinity, and integers beyond all floats.
    fits = isinstance(value, types) and isinstance(value, bool) == (kind is bool)
    fits = fits and (kind is not float or -1e300 < value < 1e300)
    return None if fits else _phrase_mismatch(name, value, words)


def _break_rule(value: Any, rule: Any, name: str) -> str | None:
    if isinstance(rule, Check):
        return None if rule.accepts(value) else _phrase_mismatch(name, value, rule.words)
    if rule in _OTHERS:
        return find_mismatch(value, rule, name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high = getattr(rule, "min", None), getattr(rule, "max", None)
        if low is not None and value < low:
            return f"'{name}' is {shorten(str(value))}, below {low:g}"
        if high is not None and value > high:
            return f"'{name}' is {shorten(str(value))}, above {high:g}"
    return None


def _phrase_mismatch(name: str, value: Any, words: str) -> str:
    try:
        shown = shorten(json.dumps(value, ensure_ascii=False))
    except RecursionError:
        shown = "nested too deep"
    return f"'{name}' is {shown}, not {words}" if name else f"it is {shown}, not {words}"


def _join_names(name: str, inner: str) -> str:
    return shorten(f"{name}.{inner}" if name else inner)


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    import hashlib  # takes longer to import than this module, and few commands need it

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_cache_folder() -> Path | None:
    """Return agegen's cache folder, which need not exist; None if the user has no home, as in some containers."""
    from platformdirs import user_cache_path

    try:
        path = user_cache_path("agegen")
    except RuntimeError:
        return None
    # Older releases of platformdirs return "~", which would be a folder in the current one.
    return None if str(path).startswith("~") else path


def require_cache_folder() -> Path:
    """Return agegen's cache folder.

    Raises:
        AgegenError: the user has no home.
    """
    if (path := find_cache_folder()) is None:
        raise AgegenError("found no home directory for the cache. Set HOME or XDG_CACHE_HOME to a writable folder.")
    return path


def find_portrait() -> Path:
    """Return the path of the public-domain portrait of Grace Hopper that is bundled with matplotlib.

    Raises:
        AgegenError: matplotlib is not installed.
    """
    # Find the package without importing it: the import of matplotlib requires a writable folder.
    spec = find_spec("matplotlib")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (photo := Path(folder, "mpl-data", "sample_data", "grace_hopper.jpg")).is_file():
            return photo
    raise AgegenError("--demo requires matplotlib, which contains the portrait. Install it, or give a photo.")
