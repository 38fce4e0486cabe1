"""The ASGI application: the routes of the service, their page and their OpenAPI document."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import traceback
import types
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from agegen.predict.results import RARE, UNREADABLE, FacePrediction, PhotoPrediction
from agegen.serve.config import Limits
from agegen.serve.metrics import CONTENT_TYPE, ServiceMetrics
from agegen.serve.models import PredictRequest, ServedModel
from agegen.serve.requests import RequestQueue, Slot, discard_body, read_images
from agegen.serve.responses import RequestError, make_error_response, make_rows_response
from agegen.serve.security import LOG, SecurityMiddleware

# The query parameters of POST /v1/faces.
PARAMETERS = ("model", "min_score", "distribution")
_BOOLEANS = {"1": True, "true": True, "0": False, "false": False}
# This field becomes the columns ``under_18`` …, which the service does not offer.
_SEPARATE = "under"
_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
# Where the page takes in the stylesheet that it shares with the reports.
_STYLE_PLACE = "/* style.css of the reports is inserted here */"
_STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)


@dataclass(frozen=True)
class Service:
    """What the routes use: the models by name (the first one is the default), the request queue and the metrics."""

    models: dict[str, ServedModel]
    queue: RequestQueue
    metrics: ServiceMetrics


def make_app(service: Service, token: str | None, host: str, origins: Collection[str] = ()) -> SecurityMiddleware:
    """Return the application; the other arguments as for :class:`agegen.serve.security.SecurityMiddleware`."""
    service.metrics.observe_queue(lambda: service.queue.requests, lambda: service.queue.held)
    page, policy = load_page()
    document = make_document(list(service.models), service.queue.limits, token is not None)

    async def get_page(_: Request) -> Response:
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": policy})

    async def get_health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def get_models(_: Request) -> Response:
        default = next(iter(service.models))
        return JSONResponse({"default": default, "models": [model.to_json() for model in service.models.values()]})

    async def get_metrics(_: Request) -> Response:
        return Response(service.metrics.format(), headers={"Content-Type": CONTENT_TYPE})

    async def get_document(_: Request) -> Response:
        return JSONResponse(document)

    async def post_faces(request: Request) -> Response:
        return await predict_faces(service, request)

    routes = {
        "/": get_page,
        "/healthz": get_health,
        "/metrics": get_metrics,
        "/openapi.json": get_document,
        "/v1/models": get_models,
    }
    app = Starlette(
        routes=[
            *(Route(path, endpoint, methods=["GET"]) for path, endpoint in routes.items()),
            Route("/v1/faces", post_faces, methods=["POST"]),
        ],
        exception_handlers={HTTPException: _handle_http_exception, Exception: _handle_unexpected},
    )
    # A trailing slash is an unknown path: a redirect would have no reason, and most clients repeat no body.
    app.router.redirect_slashes = False
    return SecurityMiddleware(app, service.metrics, {*routes, "/v1/faces"}, token, host, origins)


async def predict_faces(service: Service, request: Request) -> Response:
    """Return the rows of all images in a request's body, or an error response."""
    try:
        asked = parse_query(request.query_params, service.models)
        service.queue.check_room()
    except RequestError as error:
        return await _reject(request, error)
    slot = Slot(service.queue)
    try:
        images = await read_images(request, slot, service.queue.limits)
        slot.enter_queue()
        photos = await _run_while_connected(request, lambda: service.queue.predict(asked, images, slot))
    except RequestError as error:
        return await _reject(request, error)
    except ClientDisconnect:
        return _NoResponse()
    finally:
        slot.release()
    service.metrics.count_images(photos)
    if all(photo.status == UNREADABLE for photo in photos):
        reasons = dict.fromkeys(str(photo.reason) for photo in photos)
        # The type that curl sends by default; its -d also removes line breaks from images.
        is_curl = request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
        hint = ". With curl, send an image with --data-binary @FILE, not -d." if is_curl else ""
        return make_error_response(RequestError(422, "; ".join(reasons) + hint))
    return make_rows_response(photos)


def parse_query(query: Mapping[str, str], models: Mapping[str, ServedModel]) -> PredictRequest:
    """Return the parameters of a request; ``models`` are the served ones by name, the default one first.

    Raises:
        RequestError: 422, an unknown parameter or an invalid value.
    """
    if unknown := [name for name in query if name not in PARAMETERS]:
        raise RequestError(422, f"unknown parameter: '{unknown[0][:60]}'. Use {', '.join(PARAMETERS)}.")
    name = query.get("model", next(iter(models)))
    if name not in models:
        raise RequestError(422, f"unknown model: '{name[:60]}'. Choose from {', '.join(models)}.")
    try:
        score = float(query.get("min_score", "0"))
    except ValueError:
        score = -1.0
    if not 0 <= score <= 1:
        raise RequestError(422, "min_score must be a number from 0 to 1")
    distribution = _BOOLEANS.get(query.get("distribution", "0").lower())
    if distribution is None:
        raise RequestError(422, "distribution must be 0 or 1")
    return PredictRequest(models[name], score, distribution)


async def _run_while_connected(
    request: Request, work: Callable[[], Awaitable[list[PhotoPrediction]]]
) -> list[PhotoPrediction]:
    """Return the result of ``work``; cancel it if the client disconnects.

    Raises:
        ClientDisconnect: the client disconnected.
    """
    job = asyncio.ensure_future(work())
    disconnect = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({job, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise ClientDisconnect
        return job.result()
    finally:
        job.cancel()
        disconnect.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _NoResponse(Response):
    """For a client that has disconnected; the log then says so."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pass


async def _reject(request: Request, error: RequestError) -> Response:
    await discard_body(request)
    return make_error_response(error, close=True)


async def _handle_http_exception(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = make_error_response(RequestError(error.status_code, error.detail))
    # Of 405: the methods that the path has.
    response.headers.update(error.headers or {})
    return response


async def _handle_unexpected(_: Request, error: Exception) -> Response:
    """Log where an unexpected error arose, without its message, which may contain a file name; return a response."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    LOG.error("%s at %s:%s", type(error).__name__, Path(place.filename).name, place.lineno)
    return make_error_response(RequestError(500, "internal error. The service's log says where."), close=True)


def load_page() -> tuple[str, str]:
    """Return the web page and its Content-Security-Policy, which allows its own script and style by their SHA-256."""
    page = files("agegen.serve").joinpath("page.html").read_text(encoding="utf-8")
    style = files("agegen").joinpath("render", "templates", "style.css").read_text(encoding="utf-8")
    page = page.replace(_STYLE_PLACE, style)
    policy = {
        "default-src": "'none'",
        "script-src": " ".join(_format_source(text) for text in _SCRIPT.findall(page)),
        "style-src": " ".join(_format_source(text) for text in _STYLE.findall(page)),
        # Chosen images are displayed from the browser's memory.
        "img-src": "blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return page, "; ".join(f"{name} {value}" for name, value in policy.items())


def _format_source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def make_document(models: Sequence[str], limits: Limits, token_required: bool) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document: a static file, completed with what is known at run time only.

    The first of ``models`` is the default one.
    """
    text = files("agegen.serve").joinpath("openapi.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    document["info"]["version"] = version("agegen")
    operation = document["paths"]["/v1/faces"]["post"]
    (model,) = (parameter for parameter in operation["parameters"] if parameter["name"] == "model")
    model["schema"] |= {"enum": list(models), "default": models[0]}
    body = operation["requestBody"]
    body["description"] = f"At most {limits.body / 1e6:g} MB and {limits.images} images."
    for kind, name in (("multipart/form-data", "image"), ("application/json", "images")):
        body["content"][kind]["schema"]["properties"][name]["maxItems"] = limits.images
    document["components"]["schemas"]["Row"] = _make_row_schema()
    if token_required:
        # Operations for which the file has an empty list need no token.
        document["security"] = [{"token": []}]
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return document


def _make_row_schema() -> dict[str, Any]:
    """Return the JSON schema of a row, from the fields of :class:`agegen.predict.results.FacePrediction`."""
    hints = {name: hint for name, hint in get_type_hints(FacePrediction).items() if name != _SEPARATE}
    return {
        "type": "object",
        "properties": {name: _make_type_schema(hint) for name, hint in hints.items()},
        "required": [name for name in hints if name not in RARE],
        "additionalProperties": False,
    }


def _make_type_schema(hint: Any) -> dict[str, Any]:
    if get_origin(hint) in (Union, types.UnionType):
        parts = [_make_type_schema(part) for part in get_args(hint) if part is not type(None)]
        return {"anyOf": [*parts, {"type": "null"}]}
    if get_origin(hint) is tuple:
        return {"type": "array", "items": _make_type_schema(get_args(hint)[0])}
    return {"type": _JSON_TYPES[hint]}
