"""What stands before every request: who may ask, what every answer says, and the one line that is logged of it."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agegen.serve.limits import Refusal, answer_refusal
from agegen.serve.metrics import Measures

LOG = logging.getLogger("agegen.serve")
# What anyone may see, who has no token: nothing of pictures, nor of who asks.
OPEN_ROUTES = ("/", "/healthz", "/openapi.json")
_OTHER = "other"
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """Asks for the token, keeps other web pages out, adds headers, counts and logs; names no file, keeps nothing."""

    def __init__(self, app: ASGIApp, measures: Measures, routes: Collection[str], token: str | None, host: str) -> None:
        """``host``: that the service is bound to; on loopback, names that don't mean this machine are refused.

        With a token other names are welcome: a proxy's, and pages that lead theirs here don't have it.
        """
        self._app, self._measures, self._routes = app, measures, routes
        self._token = token
        own = is_loopback(host) and token is None
        self._names = {"localhost", "127.0.0.1", "[::1]", host} if own else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        status = 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope)
        except Refusal as refusal:
            await answer_refusal(refusal)(scope, receive, send_and_note)
        else:
            await self._app(scope, receive, send_and_note)
        self._note(scope, status, time.monotonic() - began)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        # A page elsewhere may lead its own name to this machine, and a browser would let it read all answers.
        if self._names is not None and _strip_port(host) not in self._names:
            raise Refusal(403, "this service answers to localhost alone")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise Refusal(403, "requests of other web pages are refused")
        if self._token is None or scope["path"] in OPEN_ROUTES:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token.encode()):
            raise Refusal(401, "this service wants a token: Authorization: Bearer TOKEN")

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        # Paths and methods that don't exist may be anything that a client sends.
        route = scope["path"] if scope["path"] in self._routes else _OTHER
        method = scope["method"] if scope["method"] in _METHODS else _OTHER
        self._measures.count_request(route, method, status, seconds)
        LOG.info("%s %s %s %.0f ms", method, route, status or "client gone", 1000 * seconds)


def is_loopback(host: str) -> bool:
    """Return whether a service bound to this name or address is reached from this machine alone."""
    return host in ("localhost", "::1") or host.startswith("127.")


def _strip_port(host: str) -> str:
    name, _, port = host.rpartition(":")
    return name if name and port.isdigit() else host
