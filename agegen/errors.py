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


def shorten(text: str) -> str:
    """Return text in a form that fits into an error: one line, printable, at most 200 characters."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in text[:200])
    return printable if len(text) <= 200 else printable[:197] + "…"
