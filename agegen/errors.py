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
