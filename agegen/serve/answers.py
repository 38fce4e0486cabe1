"""Answers: rows as JSON, refusals with their reason; never a traceback."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import JSONResponse, Response

from agegen.predict.results import PhotoPrediction
from agegen.predict.rows import format_row
from agegen.serve.limits import Refusal


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
