"""The Hugging Face Hub's client, kept from filling the terminal with its retries: our error says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Show only errors of the Hub's client inside the block."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(before)


def explain_failure(error: Exception) -> str:
    """Return the first line of what a failed download said, or the error's kind."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
