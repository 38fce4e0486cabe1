"""Downloads from the Hugging Face Hub: cached files first, quiet retries, one-line errors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agegen.errors import AgegenError

if TYPE_CHECKING:
    from torch import nn


# A commit, whose files never change; a branch or tag may have newer ones than the cache.
# The variable of the Hugging Face Hub says nothing about other addresses.
_OFFLINE = "AGEGEN_OFFLINE"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def download_file(repository: str, file: str, revision: str | None = None, newest: bool = False) -> Path:
    """Return the local path of a file in a Hub repository; it is downloaded unless the Hugging Face cache has it.

    With ``newest``, the Hub is asked for a newer file first, unless ``revision`` is a commit; without an answer, the
    file in the cache is used.

    Raises:
        AgegenError: the file is not cached and cannot be downloaded, or the cache folder is unknown.
    """
    cached = find_cached(repository, file, revision)
    if cached is not None and (not newest or _COMMIT.fullmatch(revision or "") or "HF_HUB_OFFLINE" in os.environ):
        return cached
    _require_cache_folder()
    try:
        from huggingface_hub import hf_hub_download

        with quiet_hub():
            return Path(hf_hub_download(repository, file, revision=revision))
    except ImportError as error:
        if cached is not None:
            return cached
        raise AgegenError(
            f"the download of {file} from {repository} requires another package: pip install huggingface-hub"
        ) from error
    except Exception as error:  # the Hub client raises its own errors, requests' errors and OS errors
        if cached is not None:
            return cached
        raise AgegenError(
            f"{file} of {repository} is not in the Hugging Face cache and cannot be downloaded "
            f"({explain_failure(error)}). Go online once, or set HF_HOME to a cache that contains it."
        ) from error


def find_cached(repository: str, file: str, revision: str | None = None) -> Path | None:
    """Return the path of a file in the Hugging Face cache: of ``revision`` or the newest one; None if absent.

    This does not use the Hub client: its import takes longer than a face detection, and small installations lack it.
    """
    cache = _find_cache_folder()
    if cache is None:
        return None
    folder = cache / f"models--{repository.replace('/', '--')}"
    for name in (revision, _read_ref(folder / "refs" / (revision or "main"))):
        if name and (path := folder / "snapshots" / name / file).is_file():
            return path
    return None


def _find_cache_folder() -> Path | None:
    """Return the Hub client's cache folder, by its rules; None if it would be in the home of a user who has none."""
    default = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", f"{default}/huggingface")
    folder = os.environ.get("HF_HUB_CACHE", os.environ.get("HUGGINGFACE_HUB_CACHE", f"{home}/hub"))
    path = os.path.expandvars(os.path.expanduser(folder))  # noqa: PTH111 - Path raises an error if there is no home
    return None if path.startswith("~") else Path(path)


def _require_cache_folder() -> None:
    """Raise AgegenError if no folder for downloads exists."""
    if _find_cache_folder() is None:
        raise AgegenError("found no home directory for the Hugging Face cache. Set HF_HOME to a writable folder.")


def _read_ref(path: Path) -> str | None:
    """Return the commit that a branch or tag pointed to when it was downloaded."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def create_timm(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
    """Build a timm network; pretrained weights come from the Hugging Face cache or the Hub.

    Raises:
        AgegenError: timm cannot build the network, or its weights are not cached and cannot be downloaded.
        TypeError: the network does not accept one of the options.
    """
    import timm

    if pretrained:
        _require_cache_folder()
    try:
        with quiet_hub(), _forbid_pickles():
            network: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except TypeError:
        raise
    except Exception as error:  # the Hub client raises its own, requests' and OS errors, timm raises RuntimeErrors
        if not pretrained:
            raise AgegenError(f"timm cannot build '{name}': {explain_failure(error)}") from error
        raise AgegenError(
            f"the weights timm/{name} are not in the Hugging Face cache and cannot be downloaded "
            f"({explain_failure(error)}). Go online once, or set HF_HOME to a cache that contains them."
        ) from error
    return network


@contextmanager
def _forbid_pickles() -> Iterator[None]:
    """Make torch load only tensors inside the block, whatever the caller requests: pickles can run code."""
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


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Suppress the Hub client's warnings inside the block; its retries would fill the terminal."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(before)


def explain_failure(error: Exception) -> str:
    """Return the first line of the message of a failed download, or the error's type if it has no message."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def go_offline() -> None:
    """Forbid network access in this process; call this before the first download."""
    os.environ["HF_HUB_OFFLINE"] = os.environ[_OFFLINE] = "1"


def is_offline() -> bool:
    """Return whether :func:`go_offline` was called, by this process or by the one that started it."""
    return _OFFLINE in os.environ
