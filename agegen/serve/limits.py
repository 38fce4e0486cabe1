"""The limits of the service, and its JSON responses: the rows of predictions, or a status with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.responses import JSONResponse, Response

from agegen.errors import AgegenError
from agegen.machine import count_cores
from agegen.predict.results import PhotoPrediction
from agegen.predict.rows import format_row


@dataclass(frozen=True)
class Limits:
    """Limits of the service.

    Attributes:
        body: size of a request body, in bytes.
        images: number of images per request.
        pages: number of pages per image file; a TIFF of thousands of pages would occupy a thread for minutes.
        requests: number of requests in the queue (being received, waiting or in progress); further ones get 429.
        held: total size of all request bodies in memory, in bytes; further requests get 429.
        seconds: timeout for receiving a body, and again for computing its predictions.
        head_seconds: time a connection may stay open without a request in progress; so also the timeout for receiving
            the head of a request.
        connections: number of open connections.
        threads: number of threads that decode images and detect faces.
    """

    # Larger than the JPEG files of current phones and cameras.
    body: int = 25_000_000
    images: int = 32
    pages: int = 32
    requests: int = 64
    held: int = 400_000_000
    seconds: float = 30.0
    head_seconds: float = 10.0
    # Linux allows a process 1,024 open files by default.
    connections: int = 500
    threads: int = field(default_factory=count_cores)

    def __post_init__(self) -> None:
        if not (self.body >= 1 and self.requests >= 1 and self.threads >= 1 and self.seconds > 0):
            raise AgegenError("--max-body, --queue, --threads and --timeout must be greater than 0")


class RequestError(Exception):
    """A request that cannot be answered with predictions: the HTTP status and the reason sent to the client.

    ``retry_after``: seconds after which the client may try again; None if trying again is pointless.
    """

    def __init__(self, status: int, reason: str, retry_after: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_after = status, reason, retry_after


def make_rows_response(photos: Sequence[PhotoPrediction]) -> Response:
    """Return the rows of all images as a JSON array; each row is what ``agegen predict --json`` writes."""
    rows = [format_row(row) for photo in photos for row in photo.list_rows()]
    return Response("[" + ",\n ".join(rows) + "]\n", media_type="application/json")


def make_error_response(error: RequestError, close: bool = False) -> Response:
    """Return an error as ``{"status": …, "reason": …}``.

    ``close``: also close the connection, for requests whose body has not been read to its end.
    """
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if close:
        headers["Connection"] = "close"
    return JSONResponse({"status": error.status, "reason": error.reason}, error.status, headers)
