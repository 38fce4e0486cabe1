"""Errors that a user can cause. Each message is one line: what is wrong, and what to do."""

import re

# C0 and C1 control characters, line separators, and marks that change the direction of writing.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


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


def escape_controls(text: str, keep: str = "") -> str:
    """Return text with control characters as escapes, except those in ``keep``.

    Names of files and groups come from anywhere: on a terminal, control characters would move the cursor, change
    colours, or reverse the direction of what follows.
    """
    return _CONTROLS.sub(
        lambda match: match[0] if match[0] in keep else match[0].encode("unicode_escape").decode("ascii"), text
    )


def shorten(text: str) -> str:
    """Return text in a form that fits into an error: one line, printable, at most 200 characters."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in text[:200])
    return printable if len(text) <= 200 else printable[:197] + "…"
