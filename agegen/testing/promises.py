"""How a broken promise is told."""

from __future__ import annotations


def require(kept: object, promise: str) -> None:
    """Raise where a promise is broken; not with ``assert``, which ``python -O`` leaves out.

    Raises:
        AssertionError: it is broken.
    """
    if not kept:
        raise AssertionError(promise)
