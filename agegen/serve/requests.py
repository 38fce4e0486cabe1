"""The request queue, with its limits on requests and memory, and the reading of images from request bodies."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import zlib
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from agegen.data.images import count_pages
from agegen.predict.config import STDIN
from agegen.predict.extraction import DecodeLimits, FaceExtractor
from agegen.predict.results import ExtractedFaces, PhotoPrediction
from agegen.serve.config import Limits
from agegen.serve.models import PredictRequest
from agegen.serve.responses import RequestError

T = TypeVar("T")
# An image and the name that its rows have.
NamedImage = tuple[str, bytes]

# Sent as Retry-After. A photo takes about 0.05 s, so the queue has moved on by then.
_RETRY_SECONDS = 2
# The share of the timeout that decoding an image may take: the images that waited for it still have time.
_DECODE_SHARE = 1 / 3
# The name of an image that was sent without one; `agegen predict -` uses the same for an image on stdin.
_UNNAMED = STDIN
_MULTIPART, _JSON = "multipart/form-data", "application/json"
_BOUNDARY = re.compile(r'boundary=(?:"([^"\r\n]{1,256})"|([^;,"\s]{1,256}))', re.IGNORECASE)
_JSON_FORM = '{"images": [{"file": "NAME", "data": "BASE64"}]}'
# Values in a JSON body. A valid one has about 5 per image, and base64 has none of these characters; parsing millions
# of values would take seconds and gigabytes.
_JSON_MARKS, _MAX_JSON_MARKS = (b"[", b"{", b",", b":"), 10_000
# As long as a path may be on Linux. A name is repeated in the row of each face.
_MAX_NAME = 4096
# Content types of a body that is a single image; the last one is what `curl --data-binary` sends by default.
_IMAGE_TYPES = ("image/", "application/octet-stream", "application/x-www-form-urlencoded")
_MEMORY_REASON = "the memory limit for request bodies is reached. Try again."
# If memory is short, bodies that have been arriving for longer are dropped. Usual photos arrive sooner.
_SLOW_SECONDS = 2.0
# zlib's code for a gzip header and the largest window.
_GZIP_BITS = 31
# How much of a rejected body is read and discarded: a client that is still sending would not read the response.
_DRAIN_SECONDS, _DRAIN_BYTES = 2.0, 100_000_000


class RequestQueue:
    """Admits requests up to the limits and computes their predictions; to be used on the event loop's thread only.

    ``requests`` is the number of requests at the moment, including those whose body is being received, ``queued`` the
    number of those in the queue, and ``held`` the size of all their bodies in bytes.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.requests = 0
        self.queued = 0
        self.held = 0
        seconds = _DECODE_SHARE * limits.seconds
        self._decode_limits = DecodeLimits(seconds, seconds, limits.pages)
        self._pool = ThreadPoolExecutor(limits.threads, thread_name_prefix="extract")
        # When the requests whose bodies are being received began to send them, the earliest first.
        self.receiving: dict[Slot, float] = {}
        self._extractions: set[Future[list[ExtractedFaces]]] = set()

    def check_room(self) -> None:
        """Check whether the queue has room for a request.

        Raises:
            RequestError: 429, the queue is full.
        """
        if self.queued >= self.limits.requests:
            raise RequestError(429, f"the queue is full ({self.queued} requests). Try again.", _RETRY_SECONDS)

    async def predict(self, request: PredictRequest, images: Sequence[NamedImage], slot: Slot) -> list[PhotoPrediction]:
        """Return the predictions of all images, one per page for images with several pages.

        Raises:
            RequestError: 503, the timeout was exceeded.
        """
        extractor = request.extractor.with_limits(self._decode_limits)
        extractions = [self._pool.submit(self._extract, extractor, name, content) for name, content in images]
        slot.hold_until_done(extractions)
        self._track(extractions)
        try:
            async with asyncio.timeout(self.limits.seconds):
                pages = [page for part in await _gather(extractions) for page in part]
                crops = [crop for page in pages for crop in page.crops]
                estimated = await asyncio.wrap_future(request.model.batcher.submit(crops)) if crops else []
        except TimeoutError:
            reason = f"no result within {self.limits.seconds:g} seconds. Try again."
            raise RequestError(503, reason, _RETRY_SECONDS) from None
        finally:
            # After a timeout or a disconnect nobody needs the extractions that have not started.
            for future in extractions:
                future.cancel()
        estimates = iter(estimated)
        return [request.build_prediction(page, [next(estimates) for _ in page.crops]) for page in pages]

    def find_slowest(self, asking: Slot) -> Slot | None:
        """Return the request whose body has been arriving for the longest time, if that is long; not the asking one."""
        latest = asyncio.get_running_loop().time() - _SLOW_SECONDS
        slow = (slot for slot, start in self.receiving.items() if start < latest and slot is not asking)
        return next(slow, None)

    def close(self, seconds: float) -> int:
        """Cancel the images that wait for a thread; return how many others are still in progress after this time."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        return len(wait(list(self._extractions), seconds).not_done)

    def _track(self, extractions: Iterable[Future[list[ExtractedFaces]]]) -> None:
        for future in extractions:
            self._extractions.add(future)
            future.add_done_callback(self._extractions.discard)

    def _extract(self, extractor: FaceExtractor, name: str, content: bytes) -> list[ExtractedFaces]:
        if count_pages(content, self.limits.pages + 1) > self.limits.pages:
            return [ExtractedFaces(name, reason=f"too many pages. At most {self.limits.pages} are allowed.")]
        return extractor.extract_file(name, content)


async def _gather(futures: Iterable[Future[T]]) -> list[T]:
    return list(await asyncio.gather(*(asyncio.wrap_future(future) for future in futures)))


class Slot:
    """The memory that a request holds and, once its body has been received, its place in the queue.

    Both stay occupied until the request has been answered and no thread works on it any more.
    """

    def __init__(self, queue: RequestQueue) -> None:
        self._queue, self._bytes, self._queued, self._dropped = queue, 0, 0, False
        # The request itself, and each image that a thread has not finished.
        self._pending = 1
        self._loop = asyncio.get_running_loop()
        queue.requests += 1

    @asynccontextmanager
    async def limit_time(self) -> AsyncIterator[None]:
        """Limit the time in which the body is received, which happens inside this context.

        Raises:
            RequestError: 408, or 429 if others needed the memory meanwhile.
        """
        try:
            async with asyncio.timeout(self._queue.limits.seconds) as self._timeout:
                self._queue.receiving[self] = self._loop.time()
                yield
        except TimeoutError:
            if self._dropped:
                raise RequestError(429, _MEMORY_REASON, _RETRY_SECONDS) from None
            reason = f"the body was not received within {self._queue.limits.seconds:g} seconds"
            raise RequestError(408, reason) from None
        finally:
            self._queue.receiving.pop(self, None)

    def drop(self) -> None:
        """Stop receiving the body and free its memory."""
        self._dropped = True
        self._queue.receiving.pop(self, None)
        self._queue.held -= self._bytes
        self._bytes = 0
        if not self._timeout.expired():
            self._timeout.reschedule(self._loop.time())

    def reserve(self, size: int) -> None:
        """Account for ``size`` further bytes of the body; if memory is short, those who send slowly lose theirs.

        Raises:
            RequestError: 429, the bodies of all requests exceed the memory limit.
        """
        while self._queue.held + size > self._queue.limits.held:
            if (slowest := self._queue.find_slowest(self)) is None:
                raise RequestError(429, _MEMORY_REASON, _RETRY_SECONDS)
            slowest.drop()
        self._queue.held += size
        self._bytes += size

    def enter_queue(self) -> None:
        """Take a place in the queue; only requests with a complete body do, so slow clients cannot fill it.

        Raises:
            RequestError: 429, the queue is full.
        """
        self._queue.check_room()
        self._queued = 1
        self._queue.queued += 1

    def hold_until_done(self, futures: Iterable[Future[T]]) -> None:
        """Keep the slot until these are done: a thread cannot be stopped while it works on an image."""
        for future in futures:
            self._pending += 1
            future.add_done_callback(self._release_from_thread)

    def release(self) -> None:
        """Mark the request, or one of its images, as done; free the slot after the last one."""
        self._pending -= 1
        if not self._pending:
            self._queue.requests -= 1
            self._queue.queued -= self._queued
            self._queue.held -= self._bytes

    def _release_from_thread(self, _: Future[T]) -> None:
        # The event loop may be closed already if the service is stopping.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.release)


async def read_images(request: Request, slot: Slot, limits: Limits) -> list[NamedImage]:
    """Return the images of a request: the body itself, all files of a multipart form, or base64 in a JSON document.

    A body with ``Content-Encoding: gzip`` is decompressed; the limits then apply to both sizes.

    Raises:
        RequestError: 408, 413, 415, 422 or 429.
        ClientDisconnect: the client closed the connection.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and kind not in (_MULTIPART, _JSON) and not kind.startswith(_IMAGE_TYPES):
        types = f"an image (image/jpeg …), {_MULTIPART} or {_JSON}"
        raise RequestError(415, f"unsupported content type: {kind[:60]}. Send {types}.")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        raise RequestError(415, f"unsupported content encoding: {encoding[:60]}. Send gzip, or none.")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limits.body:
        raise _make_size_error(limits.body)
    chunks = _limit_size(request.stream(), limits.body)
    if encoding == "gzip":
        chunks = _limit_size(_decompress(chunks, limits.body), limits.body)
    chunks = _reserve_memory(chunks, slot)
    async with slot.limit_time():
        if kind == _MULTIPART:
            images = await _read_form(request, chunks, limits)
        elif kind == _JSON:
            images = _parse_json(await _join(chunks), limits)
        else:
            images = [(_UNNAMED, content)] if (content := await _join(chunks)) else []
    if not images:
        raise RequestError(422, "the body is empty. Send an image.")
    return images


async def discard_body(request: Request) -> None:
    """Read and discard the rest of a rejected request's body for a while, so that the client reads the response."""
    discarded = 0
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for chunk in request.stream():
                discarded += len(chunk)
                if discarded > _DRAIN_BYTES:
                    return


async def _limit_size(chunks: AsyncIterator[bytes], limit: int) -> AsyncIterator[bytes]:
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise _make_size_error(limit)
        yield chunk


async def _decompress(chunks: AsyncIterator[bytes], limit: int) -> AsyncIterator[bytes]:
    """Decompress a gzip stream; each part is at most one byte larger than the limit."""
    decompressor = zlib.decompressobj(_GZIP_BITS)
    async for chunk in chunks:
        try:
            part = decompressor.decompress(chunk, limit + 1)
        except zlib.error:
            raise RequestError(422, "the body is not valid gzip") from None
        # A stream has one member: millions of empty ones would take seconds.
        if decompressor.unused_data:
            raise RequestError(422, "the body has data after its gzip stream")
        yield part
    if not decompressor.eof:
        raise RequestError(422, "the body is a truncated gzip stream")


async def _reserve_memory(chunks: AsyncIterator[bytes], slot: Slot) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        slot.reserve(len(chunk))
        yield chunk


async def _join(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


def _parse_json(content: bytes, limits: Limits) -> list[NamedImage]:
    if sum(map(content.count, _JSON_MARKS)) > _MAX_JSON_MARKS:
        raise RequestError(422, f"the JSON body has too many values. Send {_JSON_FORM}.")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise RequestError(422, f"invalid JSON. Send {_JSON_FORM}.") from None
    images = document["images"] if isinstance(document, dict) and document.keys() == {"images"} else None
    if not isinstance(images, list):
        raise RequestError(422, f"unsupported JSON. Send {_JSON_FORM}; parameters belong in the query.")
    if len(images) > limits.images:
        raise RequestError(422, f"too many images: {len(images)}. At most {limits.images} are allowed.")
    return [_parse_entry(entry) for entry in images]


def _parse_entry(entry: Any) -> NamedImage:
    known = isinstance(entry, dict) and entry.keys() <= {"file", "data"}
    name, data = (entry.get("file", _UNNAMED), entry.get("data")) if known else (None, None)
    if not isinstance(name, str) or not isinstance(data, str) or len(name) > _MAX_NAME:
        raise RequestError(422, f"unsupported image in the JSON body. Send {_JSON_FORM}.")
    # Browsers make data URLs, and the command base64 makes lines.
    encoded = data.partition(",")[2] if data.startswith("data:") else data
    try:
        content = base64.b64decode(encoded.encode("ascii").translate(None, b" \t\r\n"), validate=True)
    except ValueError:
        raise RequestError(422, "an image of the JSON body is not valid base64") from None
    # A lone surrogate cannot be written into a row.
    return name.encode(errors="replace").decode() or _UNNAMED, content


async def _read_form(request: Request, chunks: Any, limits: Limits) -> list[NamedImage]:
    # Of the header's parameters only the boundary: with a charset that takes quadratic time (punycode), a field of
    # 1 MB would block the service for minutes.
    boundary = _BOUNDARY.search(request.headers["content-type"])
    header = f'{_MULTIPART}; boundary="{boundary[1] or boundary[2]}"' if boundary else _MULTIPART
    parser = MultiPartParser(
        Headers({"content-type": header}), chunks, max_files=limits.images, max_fields=limits.images
    )
    # Starlette writes larger parts to temporary files; images are never written to disk.
    parser.spool_max_size = limits.body + 1
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RequestError(422, f"invalid form: {error.message}") from error
    files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
    if not files:
        raise RequestError(422, "the form contains no file. Send each image as a part with a file name.")
    return [(part.filename or _UNNAMED, await part.read()) for part in files]


def _make_size_error(limit: int) -> RequestError:
    return RequestError(413, f"the body is larger than {limit / 1e6:g} MB")
