"""The JSON responses of the service: the rows of predictions, or a status with a reason."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import JSONResponse, Response

from agegen.predict.results import PhotoPrediction
from agegen.predict.rows import format_row


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
