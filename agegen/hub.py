"""The Hugging Face Hub's client, kept from filling the terminal with its retries: our error says what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agegen.errors import AgegenError

if TYPE_CHECKING:
    from torch import nn


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


@contextmanager
def _no_pickles() -> Iterator[None]:
    """Let torch load tensors alone inside the block, whatever is asked of it: pickles can run code."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def explain_failure(error: Exception) -> str:
    """Return the first line of what a failed download said, or the error's kind."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def create_timm(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
    """Build one of timm's networks, its weights from the Hugging Face cache or the Hub.

    Raises:
        AgegenError: they are neither in the cache nor to be downloaded, or there are none.
        TypeError: the network has no such option.
    """
    import timm

    try:
        with quiet_hub(), _no_pickles():
            network: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except TypeError:
        raise
    except Exception as error:  # the Hub client raises its own, requests' and OS errors, timm runtime errors
        if not pretrained:
            raise AgegenError(f"timm can't build '{name}': {explain_failure(error)}") from error
        raise AgegenError(
            f"the weights timm/{name} are not in the Hugging Face cache and can't be downloaded "
            f"({explain_failure(error)}); go online once, or set HF_HOME to a cache that has them"
        ) from error
    return network


def find_cached(repository: str, file: str, revision: str | None = None) -> Path | None:
    """Return a file of a repository in the Hugging Face cache, of a revision or the newest known; None without it.

    The Hub's client would say so too, but its import alone takes longer than to find a face, and small installations
    do without it.
    """
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    folder = cache / f"models--{repository.replace('/', '--')}"
    for name in (revision, _read_ref(folder / "refs" / (revision or "main"))):
        if name and (path := folder / "snapshots" / name / file).is_file():
            return path
    return None


def _read_ref(path: Path) -> str | None:
    """Return the commit that a branch or tag stood for when it was fetched."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def go_offline() -> None:
    """Let nothing in this process try the network; to be called before anything is fetched."""
    os.environ["HF_HUB_OFFLINE"] = "1"


def download_file(repository: str, file: str, revision: str | None = None) -> Path:
    """Return a file of a repository from the Hugging Face cache, or download it.

    Raises:
        AgegenError: it isn't in the cache and can't be downloaded.
    """
    if (cached := find_cached(repository, file, revision)) is not None:
        return cached
    try:
        from huggingface_hub import hf_hub_download

        with quiet_hub():
            return Path(hf_hub_download(repository, file, revision=revision))
    except ImportError as error:
        raise AgegenError(f"to download {file} of {repository}, pip install huggingface-hub") from error
    except Exception as error:  # the Hub client raises its own, requests' and OS errors
        raise AgegenError(
            f"{file} of {repository} is not in the Hugging Face cache and can't be downloaded "
            f"({explain_failure(error)}); go online once, or set HF_HOME to a cache that has it"
        ) from error
