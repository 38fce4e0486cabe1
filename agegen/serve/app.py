"""The service's routes, as an ASGI application."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agegen.predict.results import UNREADABLE, PhotoPrediction
from agegen.serve.limits import Refusal, answer_refusal, answer_rows
from agegen.serve.metrics import CONTENT_TYPE, Measures
from agegen.serve.models import Asked, ServedModel
from agegen.serve.openapi import describe_api
from agegen.serve.requests import Desk, drop_rest, read_images
from agegen.serve.security import LOG, Guard

_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
_STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)


def load_page() -> tuple[str, str]:
    """Return the page and its Content-Security-Policy, which names script and style by their SHA-256."""
    page = files("agegen.serve").joinpath("page.html").read_text(encoding="utf-8")
    scripts = " ".join(_name_source(text) for text in _SCRIPT.findall(page))
    styles = " ".join(_name_source(text) for text in _STYLE.findall(page))
    policy = {
        "default-src": "'none'",
        "script-src": scripts,
        "style-src": styles,
        # Pictures that were chosen are shown from the browser's own memory.
        "img-src": "blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return page, "; ".join(f"{name} {value}" for name, value in policy.items())


def _name_source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


PARAMETERS = ("model", "min_score", "distribution")
_TRUTHS = {"1": True, "true": True, "0": False, "false": False}


@dataclass(frozen=True)
class Service:
    """What the routes work with; the first model is the default."""

    models: dict[str, ServedModel]
    desk: Desk
    measures: Measures


def make_app(service: Service, token: str | None, host: str) -> Guard:
    """Return the application, behind its guard."""
    service.measures.watch(lambda: service.desk.requests, lambda: service.desk.held)
    page, policy = load_page()
    api = describe_api(list(service.models), service.desk.limits, token is not None)

    async def show_page(_: Request) -> Response:
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": policy})

    async def tell_health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def list_models(_: Request) -> Response:
        first, *_others = service.models
        return JSONResponse({"default": first, "models": [model.to_json() for model in service.models.values()]})

    async def tell_measures(_: Request) -> Response:
        return Response(service.measures.format(), headers={"Content-Type": CONTENT_TYPE})

    async def tell_api(_: Request) -> Response:
        return JSONResponse(api)

    async def find_faces(request: Request) -> Response:
        return await answer_faces(service, request)

    routes = {
        "/": show_page,
        "/healthz": tell_health,
        "/metrics": tell_measures,
        "/openapi.json": tell_api,
        "/v1/models": list_models,
    }
    app = Starlette(
        routes=[
            *(Route(path, call, methods=["GET"]) for path, call in routes.items()),
            Route("/v1/faces", find_faces, methods=["POST"]),
        ],
        exception_handlers={HTTPException: _answer_http},
    )
    return Guard(app, service.measures, {*routes, "/v1/faces"}, token, host)


async def answer_faces(service: Service, request: Request) -> Response:
    """Answer with the rows of the pictures in a request's body, or with the reason why not."""
    try:
        asked = read_query(service, request)
        ticket = service.desk.admit()
    except Refusal as refusal:
        await drop_rest(request)
        return answer_refusal(refusal, close=True)
    try:
        pictures = await read_images(request, ticket, service.desk.limits)
        found = await _while_connected(request, lambda: service.desk.look(asked, pictures, ticket))
    except Refusal as refusal:
        await drop_rest(request)
        return answer_refusal(refusal, close=True)
    except ClientDisconnect:
        return Response(status_code=400)
    except Exception as error:
        return _answer_fault(error)
    finally:
        ticket.release()
    service.measures.count_images(found)
    if all(photo.status == UNREADABLE for photo in found):
        return answer_refusal(Refusal(422, "; ".join(dict.fromkeys(str(photo.reason) for photo in found))))
    return answer_rows(found)


def read_query(service: Service, request: Request) -> Asked:
    """Return what a request asks for.

    Raises:
        Refusal: 422, with the parameter that can't be used.
    """
    given = dict(request.query_params)
    if unknown := [name for name in given if name not in PARAMETERS]:
        raise Refusal(422, f"no parameter is called '{unknown[0][:60]}'; there are {', '.join(PARAMETERS)}")
    name = given.get("model", next(iter(service.models)))
    if name not in service.models:
        raise Refusal(422, f"no model is called '{name[:60]}' here; there are {', '.join(service.models)}")
    try:
        score = float(given.get("min_score", "0"))
    except ValueError:
        score = -1.0
    if not 0 <= score <= 1:
        raise Refusal(422, "min_score is a number from 0 to 1")
    distribution = _TRUTHS.get(given.get("distribution", "0").lower())
    if distribution is None:
        raise Refusal(422, "distribution is 0 or 1")
    return Asked(service.models[name], score, distribution)


async def _while_connected(
    request: Request, work: Callable[[], Awaitable[list[PhotoPrediction]]]
) -> list[PhotoPrediction]:
    """Return what the work gives; it is given up where the client goes away.

    Raises:
        ClientDisconnect: it did.
    """
    job = asyncio.ensure_future(work())
    gone = asyncio.ensure_future(_wait_until_gone(request))
    try:
        await asyncio.wait({job, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise ClientDisconnect
        return job.result()
    finally:
        job.cancel()
        gone.cancel()


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _answer_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return answer_refusal(Refusal(error.status_code, error.detail))


def _answer_fault(error: Exception) -> Response:
    """Answer what nobody foresaw; the log says where it arose, without the error's text: that may name a file."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    LOG.error("%s at %s:%s", type(error).__name__, Path(place.filename).name, place.lineno)
    return answer_refusal(Refusal(500, "a fault of the service; its log tells where"), close=True)
