"""What the service bounds, and how it says no."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.responses import JSONResponse, Response

from agegen.errors import AgegenError
from agegen.machine import count_cores
from agegen.predict.results import PhotoPrediction
from agegen.predict.rows import format_row

# The reasons that clients can act on, by their status.
BUSY, STOPPING = 429, 503


class Refusal(Exception):
    """A request that isn't answered with rows: an HTTP status and the reason, for the client."""

    def __init__(self, status: int, reason: str, retry_after: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_after = status, reason, retry_after


@dataclass(frozen=True)
class Limits:
    """Bounds of the service.

    Attributes:
        body: bytes of a request's body.
        pictures: of one request.
        pages: of one picture; a TIFF of thousands would keep a thread for minutes.
        requests: that are read, wait or are worked on at once; others get 429.
        held: bytes of all bodies at once; further requests get 429.
        seconds: that a body may take to arrive, and the estimates from then on.
        head_seconds: that a request's head may take to arrive.
        connections: open at once.
        threads: that decode and search.
    """

    # The largest photographs of phones and cameras, as JPEG, stay below.
    body: int = 25_000_000
    pictures: int = 32
    pages: int = 32
    requests: int = 64
    held: int = 400_000_000
    seconds: float = 30.0
    head_seconds: float = 10.0
    # A process may hold 1,024 files open by default, on Linux.
    connections: int = 500
    threads: int = field(default_factory=count_cores)

    def __post_init__(self) -> None:
        if not (self.body >= 1 and self.requests >= 1 and self.threads >= 1 and self.seconds > 0):
            raise AgegenError("--max-body, --queue, --threads and --timeout must be above 0")


def answer_rows(found: Sequence[PhotoPrediction]) -> Response:
    """Return the rows of pictures, as ``agegen predict --json`` writes them."""
    rows = [format_row(row) for photo in found for row in photo.list_rows()]
    return Response("[" + ",\n ".join(rows) + "]\n", media_type="application/json")


def answer_refusal(refusal: Refusal, close: bool = False) -> Response:
    """Return a refusal as ``{"status": …, "reason": …}``; ``close``: the connection can't be used any more."""
    headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if close:
        headers["Connection"] = "close"
    return JSONResponse({"status": refusal.status, "reason": refusal.reason}, refusal.status, headers)
