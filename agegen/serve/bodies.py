"""From a request's body to its pictures, with no more of it in memory than is allowed, and nothing on disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from agegen.predict.inputs import STDIN
from agegen.serve.desk import Ticket
from agegen.serve.limits import Limits, Refusal

# A picture that comes without a name is called as the one on stdin of `agegen predict -` is.
UNNAMED = STDIN
MULTIPART = "multipart/form-data"
# What bare pictures are sent as; the last is what `curl --data-binary` says of anything.
_BARE = ("image/", "application/octet-stream", "application/x-www-form-urlencoded")
# For how long, and how much of it, the rest of a refused body is read: a client that still sends sees no answer else.
_LINGER_SECONDS, _LINGER_BYTES = 2.0, 100_000_000


async def read_pictures(request: Request, ticket: Ticket, limits: Limits) -> list[tuple[str, bytes]]:
    """Return the pictures of a request, each with its name: the body itself, or the files of a form.

    Raises:
        Refusal: 408, 413, 415, 422 or 429, each with its reason.
        ClientDisconnect: the client went away.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and kind != MULTIPART and not kind.startswith(_BARE):
        raise Refusal(415, f"a body of type {kind[:60]}: send a picture (image/jpeg …), or {MULTIPART} with pictures")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limits.body:
        raise _refuse_size(limits)
    chunks = _read_chunks(request, ticket, limits)
    try:
        async with asyncio.timeout(limits.seconds):
            pictures = await (_read_form(request, chunks, limits) if kind == MULTIPART else _read_bare(chunks))
    except TimeoutError:
        raise Refusal(408, f"the body took longer than {limits.seconds:g} seconds to arrive") from None
    if not pictures:
        raise Refusal(422, "no picture: the body is empty")
    return pictures


async def drop_rest(request: Request) -> None:
    """Read what a refused client still sends, for a while, so that it comes to read the answer."""
    dropped = 0
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):
        async with asyncio.timeout(_LINGER_SECONDS):
            async for chunk in request.stream():
                dropped += len(chunk)
                if dropped > _LINGER_BYTES:
                    return


async def _read_chunks(request: Request, ticket: Ticket, limits: Limits) -> AsyncIterator[bytes]:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limits.body:
            raise _refuse_size(limits)
        ticket.hold(len(chunk))
        yield chunk


async def _read_bare(chunks: AsyncIterator[bytes]) -> list[tuple[str, bytes]]:
    content = b"".join([chunk async for chunk in chunks])
    return [(UNNAMED, content)] if content else []


async def _read_form(request: Request, chunks: Any, limits: Limits) -> list[tuple[str, bytes]]:
    parser = MultiPartParser(request.headers, chunks, max_files=limits.pictures, max_fields=limits.pictures)
    # What is larger would be put into files.
    parser.spool_max_size = limits.body + 1
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refusal(422, f"the form can't be read: {error.message}") from error
    files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
    if not files:
        raise Refusal(422, "the form holds no file: send each picture as a part with a file name")
    return [(part.filename or UNNAMED, await part.read()) for part in files]


def _refuse_size(limits: Limits) -> Refusal:
    return Refusal(413, f"the body is larger than {limits.body / 1e6:g} MB")
