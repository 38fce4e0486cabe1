"""Where requests queue: how many are admitted, what they hold in memory, and the threads that look at pictures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from agegen.data.images import count_pages, count_pixels
from agegen.machine import return_freed_memory
from agegen.predict.config import STDIN
from agegen.predict.extraction import FaceExtractor
from agegen.predict.results import ExtractedFaces, PhotoPrediction
from agegen.serve.limits import BUSY, STOPPING, Limits, Refusal
from agegen.serve.models import Asked

T = TypeVar("T")
# After that a client had better try again: a photograph takes some 50 ms.
_RETRY_SECONDS = 2
# Pictures of more pixels take half a gigabyte and more to decode, but for JPEGs, which are decoded smaller at once.
_LARGE, _JPEG = 25_000_000, b"\xff\xd8"


class Desk:
    """Admits requests up to the bounds and has their pictures looked at; lives on the thread of the event loop."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.requests = 0
        self.held = 0
        # Such pictures are decoded one at a time.
        self._large = threading.Lock()
        self._pool = ThreadPoolExecutor(limits.threads, thread_name_prefix="look")

    def admit(self) -> Ticket:
        """Return the place of a request in the queue.

        Raises:
            Refusal: there are too many.
        """
        if self.requests >= self.limits.requests:
            raise Refusal(BUSY, f"{self.requests} requests are under way; try again", _RETRY_SECONDS)
        return Ticket(self)

    async def look(self, asked: Asked, pictures: Sequence[tuple[str, bytes]], ticket: Ticket) -> list[PhotoPrediction]:
        """Return what is found in each picture, pages apart, with the estimates of a model.

        Raises:
            Refusal: 503, they take too long.
        """
        extractor = asked.extractor
        cuts = [self._pool.submit(self._cut, extractor, name, content) for name, content in pictures]
        ticket.watch(cuts)
        try:
            async with asyncio.timeout(self.limits.seconds):
                found = [cut for part in await _gather(cuts) for cut in part]
                crops = [crop for cut in found for crop in cut.crops]
                estimated = await asyncio.wrap_future(asked.served.batcher.submit(crops)) if crops else []
        except TimeoutError:
            raise Refusal(STOPPING, f"no answer within {self.limits.seconds:g} seconds", _RETRY_SECONDS) from None
        finally:
            # What has not begun need not: the client has gone, or was told to.
            for future in cuts:
                future.cancel()
        estimates = iter(estimated)
        return [asked.describe(cut, [next(estimates) for _ in cut.crops]) for cut in found]

    def close(self) -> None:
        """End the threads, after what they do now."""
        self._pool.shutdown(cancel_futures=True)

    def _cut(self, extractor: FaceExtractor, name: str, content: bytes) -> list[ExtractedFaces]:
        if (pages := count_pages(content)) > self.limits.pages:
            return [ExtractedFaces(name, reason=f"{pages} pages, more than {self.limits.pages}")]
        if content.startswith(_JPEG) or count_pixels(content) < _LARGE:
            return extractor.extract_file(name, content)
        with self._large:
            try:
                return extractor.extract_file(name, content)
            finally:
                return_freed_memory()


class Ticket:
    """A request's place: what it holds in memory, until it is answered and no thread works on it any more."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self._bytes, self._open = desk, 0, 1
        self._loop = asyncio.get_running_loop()
        desk.requests += 1

    def hold(self, count: int) -> None:
        """Take memory for part of the body.

        Raises:
            Refusal: the bodies of all requests take too much.
        """
        if self._desk.held + count > self._desk.limits.held:
            raise Refusal(BUSY, "requests under way take all the memory that is allowed; try again", _RETRY_SECONDS)
        self._desk.held += count
        self._bytes += count

    def watch(self, futures: Iterable[Future[T]]) -> None:
        """Keep the place until these have ended: a thread can't be stopped in the midst of its work."""
        for future in futures:
            self._open += 1
            future.add_done_callback(self._wake(self.release))

    def release(self) -> None:
        """Give the place back, once for the request and once for each piece of work."""
        self._open -= 1
        if not self._open:
            self._desk.requests -= 1
            self._desk.held -= self._bytes

    def _wake(self, call: Callable[[], None]) -> Callable[[Future[T]], None]:
        def wake(_: Future[T]) -> None:
            # Work that ends when the service has stopped has nobody to tell.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(call)

        return wake


async def _gather(futures: Sequence[Future[T]]) -> list[T]:
    return list(await asyncio.gather(*(asyncio.wrap_future(future) for future in futures)))


# A picture that comes without a name is called as the one on stdin of `agegen predict -` is.
UNNAMED = STDIN
MULTIPART = "multipart/form-data"
# What bare pictures are sent as; the last is what `curl --data-binary` says of anything.
_BARE = ("image/", "application/octet-stream", "application/x-www-form-urlencoded")
# For how long, and how much of it, the rest of a refused body is read: a client that still sends sees no answer else.
_LINGER_SECONDS, _LINGER_BYTES = 2.0, 100_000_000


async def read_images(request: Request, ticket: Ticket, limits: Limits) -> list[tuple[str, bytes]]:
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
