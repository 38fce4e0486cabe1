"""Errors that a user can cause. Each message is one line: what is wrong, and what to do."""


class AgegenError(Exception):
    """A problem that the user can fix; the command line prints its message without a traceback."""

    exit_code = 1


class DataError(AgegenError):
    """A dataset, manifest or image is unusable."""


class CheckpointError(AgegenError):
    """A checkpoint or run folder is unusable."""


class PluginError(AgegenError):
    """A plugin is missing, cannot be loaded, or violates its contract."""


class TrainingInterrupted(AgegenError):
    """Training was interrupted by the user after its state was saved."""

    exit_code = 130


def format_count(count: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, in the plural unless it is 1: 1 face, 2,000 faces."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


# Characters that make a terminal change colors, move the cursor, start a new line or reverse the order of letters.
_DIRECTIONS = {0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
_CONTROLS = {*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *_DIRECTIONS}
_ESCAPES = {code: chr(code).encode("unicode_escape").decode() for code in _CONTROLS}


def escape_controls(text: str, keep: str = "") -> str:
    """Return text for the terminal: control characters, except those to keep, as escapes such as ``\\x1b``."""
    return text.translate({code: escape for code, escape in _ESCAPES.items() if chr(code) not in keep})


def shorten(text: str) -> str:
    """Return text in a form that fits into an error: one line, printable, at most 200 characters."""
    start = text[:200]
    printable = start if start.isprintable() else "".join(one if one.isprintable() else "?" for one in start)
    return printable if len(text) <= 200 else printable[:197] + "…"
