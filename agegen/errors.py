"""Errors that a user can cause: each is one line that says what is wrong and what to do."""


class AgegenError(Exception):
    """Something the user can put right; shown as one line, no traceback."""

    exit_code = 1


class DataError(AgegenError):
    """A data set, manifest or image that can't be used."""


class CheckpointError(AgegenError):
    """A checkpoint or run folder that can't be used."""


class PluginError(AgegenError):
    """A backbone plugin that is missing, can't be loaded or breaks its contract."""


class TrainingInterrupted(AgegenError):
    """A training that was asked to stop and has saved where it stands."""

    exit_code = 130


def shorten(text: str) -> str:
    """Return text as an error may quote it: in one line of at most 200 characters, nothing unprintable."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in text[:200])
    return printable if len(text) <= 200 else printable[:197] + "…"
