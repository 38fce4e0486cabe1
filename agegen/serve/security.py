"""What protects the service: access control for requests, and limits on connections."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import socket
import time
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from agegen.serve.metrics import ServiceMetrics
from agegen.serve.responses import RequestError, make_error_response

LOG = logging.getLogger("agegen.serve")
# Routes that need no token: they reveal nothing about images or clients.
OPEN_ROUTES = ("/", "/healthz", "/openapi.json")
# Label and log text of unknown paths and methods, which may contain anything a client sends.
_OTHER = "other"
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_TOO_MANY = {"status": 503, "reason": "too many open connections. Try again."}
_RETRY_SECONDS = 2


class SecurityMiddleware:
    """Checks the token, the ``Host`` and the ``Origin`` of each request, adds security headers, counts and logs.

    A log line has the route, the status and the duration; no query, no file name, no address.
    """

    def __init__(
        self, app: ASGIApp, metrics: ServiceMetrics, routes: Collection[str], token: str | None, host: str
    ) -> None:
        """Wrap an application; ``routes`` are its paths, ``host`` is the name or address that the service is bound to.

        On a loopback address without a token only requests to this machine's own names are answered. With a token,
        any name is: that of a reverse proxy, for example, and other web pages do not know the token.
        """
        self._app, self._metrics, self._routes = app, metrics, routes
        self._token = token
        local_only = is_loopback(host) and token is None
        self._names = {"localhost", "127.0.0.1", "[::1]", host} if local_only else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope)
        except RequestError as error:
            await make_error_response(error)(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)
        self._record(scope, status, time.monotonic() - started)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        # DNS rebinding: a web page may point its own host name at this machine, and browsers would then let it read
        # the responses as if they came from its own server.
        if self._names is not None and _strip_port(host) not in self._names:
            raise RequestError(403, "unknown host name. This service only answers requests to localhost.")
        # Cross-site requests: browsers send them without asking, and name the page in Origin.
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise RequestError(403, "cross-origin requests are not allowed")
        if self._token is None or scope["path"] in OPEN_ROUTES:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token.encode()):
            raise RequestError(401, "missing or invalid token. Send the header Authorization: Bearer TOKEN.")

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope["path"] if scope["path"] in self._routes else _OTHER
        method = scope["method"] if scope["method"] in _METHODS else _OTHER
        self._metrics.count_request(route, method, status, seconds)
        LOG.info("%s %s %s %.0f ms", method, route, status or "client gone", 1000 * seconds)


def is_loopback(host: str) -> bool:
    """Return whether a service bound to this name or address can be reached from this machine only."""
    return host in ("localhost", "::1") or host.startswith("127.")


def _strip_port(host: str) -> str:
    name, _, port = host.rpartition(":")
    return name if name and port.isdigit() else host


# The address and port of the client, then those of the service: unique among open connections.
_Endpoints = tuple[str | int, ...]


class ConnectionLimiter:
    """Limits the number of open connections and the time that each may be idle, that is, have no request in progress.

    uvicorn's own settings do not do this. Its keep-alive timeout starts with the first response and stops at the next
    byte: a client that connects and sends nothing, or sends a head byte by byte (slowloris), or the body of a request
    that has been answered, would occupy a connection for ever. Beyond its ``limit_concurrency`` every request gets
    503, also those of clients that are connected already, and connections still pile up until the process runs out of
    file descriptors.

    Idle connections are recognized from two sides: the protocol (:meth:`make_protocol`) knows when a connection is
    opened and closed; this ASGI middleware knows when a request's head is complete and when its response has been
    sent. In between, the timeouts of the application apply, such as that for slow bodies.
    """

    def __init__(self, app: ASGIApp, most: int, idle_seconds: float) -> None:
        """Wrap an application; ``most`` is the number of connections, each of which may be idle for some seconds."""
        self._app, self._most, self._idle_seconds = app, most, idle_seconds
        self._connections: dict[_Endpoints, _Connection] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; its connection is not idle meanwhile."""
        endpoints = (*(scope.get("client") or ()), *(scope.get("server") or ()))
        connection = self._connections.get(endpoints)
        if connection is None:
            await self._app(scope, receive, send)
            return
        connection.start_request()
        try:
            await self._app(scope, receive, send)
        finally:
            connection.end_request()

    def make_protocol(self) -> type[asyncio.Protocol]:
        """Return the protocol class for uvicorn's setting ``http``."""
        limiter = self

        class LimitedProtocol(H11Protocol):
            endpoints: _Endpoints = ()

            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                super().connection_made(transport)
                self.endpoints = limiter._open(transport)

            def connection_lost(self, exc: Exception | None) -> None:
                limiter._forget(self.endpoints)
                super().connection_lost(exc)

        return LimitedProtocol

    def _open(self, transport: asyncio.Transport) -> _Endpoints:
        if len(self._connections) >= self._most:
            transport.write(_format_too_many())
            transport.close()
            return ()
        # uvicorn writes head and body of a response separately. With Nagle's algorithm the body would wait for the
        # client's delayed acknowledgement of the head, 40 ms. asyncio itself sets the option only on sockets that
        # report IPPROTO_TCP, which accepted ones do not.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        names = ("peername", "sockname")
        # IPv6 has two further numbers, which an ASGI scope does not.
        endpoints = tuple(part for name in names for part in (transport.get_extra_info(name) or ())[:2])
        self._connections[endpoints] = _Connection(transport, self._idle_seconds)
        return endpoints

    def _forget(self, endpoints: _Endpoints) -> None:
        connection = self._connections.pop(endpoints, None)
        if connection is not None:
            connection.stop()


class _Connection:
    """An open connection with the timer that closes it when it has been idle for too long."""

    def __init__(self, transport: asyncio.Transport, idle_seconds: float) -> None:
        self._transport, self._idle_seconds = transport, idle_seconds
        self._requests = 0
        self._start_timer()

    def start_request(self) -> None:
        # With pipelining, the next request may start before the task of the previous one has ended.
        self._requests += 1
        self._timer.cancel()

    def end_request(self) -> None:
        self._requests -= 1
        if not self._requests:
            self._start_timer()

    def stop(self) -> None:
        self._timer.cancel()

    def _start_timer(self) -> None:
        # close() still sends what a slow client has not read of its response, which abort() would not.
        self._timer = asyncio.get_running_loop().call_later(self._idle_seconds, self._transport.close)


def _format_too_many() -> bytes:
    body = json.dumps(_TOO_MANY).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nRetry-After: {_RETRY_SECONDS}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
