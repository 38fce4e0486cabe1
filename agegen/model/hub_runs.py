"""Runs on the Hugging Face Hub: ``hf://OWNER/NAME[@REVISION]`` wherever a run is asked for."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from agegen.errors import AgegenError
from agegen.hub import download_file

HUB_CHECKPOINT = "model.safetensors"
_ONNX = "model.onnx"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# As a path, an address has lost one of its slashes.
_ADDRESS = re.compile(r"hf:/{1,2}([^@]+?)(?:@([\w./-]+))?/?")


def is_hub_run(run: str | Path | None) -> bool:
    """Return whether a run is one on the Hub."""
    return run is not None and str(run).startswith("hf:/")


def parse_repository(text: str) -> str:
    """Return a repository's name.

    Raises:
        AgegenError: it isn't OWNER/NAME.
    """
    if not _REPOSITORY.fullmatch(text):
        raise AgegenError(f"'{text}' is no name on the Hub: give OWNER/NAME")
    return text


def fetch_hub_run(run: str | Path) -> Path:
    """Return the checkpoint of a run on the Hub, from the cache or downloaded; its ONNX file comes beside it.

    Both are of one revision: the one named, else the newest that the cache knows, else the Hub's newest. Weights are
    safetensors, nothing is unpickled, and an ONNX file of other weights is noticed by its checksum.

    Raises:
        AgegenError: the address is wrong, or the file is neither in the cache nor to be downloaded.
    """
    match = _ADDRESS.fullmatch(str(run))
    if match is None:
        raise AgegenError(f"'{run}' is no run on the Hub: give hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    repository, revision = parse_repository(match[1]), match[2]
    checkpoint = download_file(repository, HUB_CHECKPOINT, revision)
    # The folder of a snapshot is named by its commit: the other file comes from the same one.
    if not checkpoint.with_name(_ONNX).is_file():
        with suppress(AgegenError):
            download_file(repository, _ONNX, checkpoint.parent.name)
    return checkpoint
