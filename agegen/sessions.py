"""Sessions of onnxruntime: what runs ONNX files, models and detectors alike."""

from __future__ import annotations

from typing import Any

_ERRORS_ONLY = 3


def open_session(content: bytes, threads: int) -> Any:
    """Return a session on the CPU; ``threads``: on how many it computes.

    Raises onnxruntime's errors.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _ERRORS_ONLY
    # Threads that wait by turning in circles take the cores from those that decode and search.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # From bytes, so that a file can't name others to be read beside it.
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
