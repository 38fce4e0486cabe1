"""What protects the service: access control for requests, and limits on connections."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import re
import socket
import struct
import sys
import time
from collections.abc import Collection
from http import HTTPStatus
from typing import Any

import h11
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from agegen.errors import AgegenError, shorten
from agegen.serve.config import Limits
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
# Headers that may occur once: the service and a proxy in front of it could each obey another one of several.
_SINGLE_HEADERS = ("authorization", "content-encoding", "content-type", "origin")
# What other web pages may send and read. Browsers ask again after 10 minutes.
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Content-Encoding",
    "Access-Control-Max-Age": "600",
}
# Browsers send host names in ASCII, and no default port.
_ORIGIN = re.compile(r"https?://(?:[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
# 64 random bits as hexadecimal digits; shorter tokens are usually words.
_SHORT_TOKEN = 16
_TOO_MANY = RequestError(503, "too many open connections. Try again.", retry_after=2)
# uvicorn parses HTTP in Python, on the event loop: 256 KB of chunks with one byte each take 0.8 s, and all other
# clients wait. Usual requests take 0.0001 s, and for each byte 1e-9 s, or 25e-9 s in chunks of 256 bytes.
_PARSE_SECONDS, _PARSE_SECONDS_PER_BYTE = 0.02, 50e-9
# How much is parsed before the time is checked.
_SLICE_BYTES = 8192
_COSTLY = RequestError(400, "the request takes too long to parse. Send fewer headers, or larger chunks.")
# An error response that uvicorn itself makes, without the application: plain text, which the service never sends.
_PLAIN_ERROR = re.compile(rb"HTTP/1\.1 (4\d\d|5\d\d) (?:[^\n]*\n)*?content-type: text/plain", re.IGNORECASE)


class SecurityMiddleware:
    """Checks the token, the ``Host`` and the ``Origin`` of each request, adds security headers, counts and logs.

    A log line has the route, the status and the duration; no query, no file name, no address.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: ServiceMetrics,
        routes: Collection[str],
        token: str | None,
        host: str,
        origins: Collection[str] = (),
    ) -> None:
        """Wrap an application; ``routes`` are its paths, ``host`` is the name or address that the service is bound to.

        On a loopback address without a token only requests to this machine's own names are answered. With a token,
        any name is: that of a reverse proxy, for example, and other web pages do not know the token. Web pages of the
        ``origins`` (``https://host``) may send requests and read the responses.
        """
        self._app, self._metrics, self._routes, self._origins = app, metrics, routes, frozenset(origins)
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
                for name, value in (_HEADERS | self._make_cors_headers(scope)).items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._answer(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            if not status:
                error = RequestError(503, "the service is stopping")
                await make_error_response(error, close=True)(scope, receive, send_with_headers)
            raise
        finally:
            self._record(scope, status, time.monotonic() - started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            _check_form(scope, headers)
            self._check_sender(headers)
            if self._is_preflight(scope, headers):
                await Response(status_code=204, headers=_PREFLIGHT)(scope, receive, send)
                return
            self._check_token(scope, headers)
        except RequestError as error:
            # A malformed request's body may end elsewhere than it seems to.
            close = error.status in (400, 505)
            await make_error_response(error, close)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check_sender(self, headers: Headers) -> None:
        host = headers.get("host", "")
        # DNS rebinding: a web page may point its own host name at this machine, and browsers would then let it read
        # the responses as if they came from its own server.
        if self._names is not None and _strip_port(host) not in self._names:
            raise RequestError(403, "unknown host name. This service only answers requests to localhost.")
        # Cross-site requests: browsers send them without asking, and name the page in Origin.
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins and origin.partition("://")[2] != host:
            raise RequestError(403, "cross-origin requests are not allowed")

    def _is_preflight(self, scope: Scope, headers: Headers) -> bool:
        """Return whether a browser asks on behalf of an allowed page; it sends no token with this."""
        asks = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        return asks and headers.get("origin") in self._origins

    def _make_cors_headers(self, scope: Scope) -> dict[str, str]:
        """Return the headers that allow the page of a request to read the response, also that of an error."""
        if (origin := Headers(scope=scope).get("origin")) not in self._origins:
            return {}
        return {
            "Access-Control-Allow-Origin": origin or "",
            "Access-Control-Expose-Headers": "Retry-After",
            "Vary": "Origin",
        }

    def _check_token(self, scope: Scope, headers: Headers) -> None:
        if self._token is None or scope["path"] in OPEN_ROUTES:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token.encode()):
            raise RequestError(401, "missing or invalid token. Send the header Authorization: Bearer TOKEN.")

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope["path"] if scope["path"] in self._routes else _OTHER
        method = scope["method"] if scope["method"] in _METHODS else _OTHER
        record_request(self._metrics, route, method, status, seconds)


def _check_form(scope: Scope, headers: Headers) -> None:
    """Refuse requests that HTTP leaves undefined, and that proxies may understand otherwise than this service."""
    if scope["http_version"] not in ("1.0", "1.1"):
        raise RequestError(505, "unsupported HTTP version. Use HTTP/1.1.")
    if scope["http_version"] == "1.0" and "transfer-encoding" in headers:
        raise RequestError(400, "Transfer-Encoding requires HTTP/1.1")
    for name in _SINGLE_HEADERS:
        if len(headers.getlist(name)) > 1:
            raise RequestError(400, f"more than one header {name.title()}")


def check_token(token: str) -> str | None:
    """Return a warning if a token is easy to guess, otherwise None.

    Raises:
        AgegenError: the token is empty, or has characters that clients cannot send in a header.
    """
    if not token or not all("!" <= letter <= "~" for letter in token):
        what = "it is empty" if not token else "it has blanks or characters other than ASCII"
        raise AgegenError(
            f"invalid token: {what}. Give --token (or $AGEGEN_TOKEN) ASCII characters, for example 32 digits."
        )
    if len(token) < _SHORT_TOKEN:
        return (
            f"the token is short ({len(token)} characters) and may be guessed; use {_SHORT_TOKEN} random ones or more"
        )
    return None


def parse_origin(text: str) -> str:
    """Return the origin of web pages as browsers send it: ``https://host`` or ``http://host:port``.

    Raises:
        AgegenError: the text is not an origin.
    """
    origin = text.strip().lower().rstrip("/")
    if not _ORIGIN.fullmatch(origin):
        raise AgegenError(f"invalid --allow-origin: '{shorten(text)}'. Give a scheme and a host: https://faces.example")
    scheme, _, host = origin.partition("://")
    return f"{scheme}://{host.removesuffix(_DEFAULT_PORTS[scheme])}"


def record_request(metrics: ServiceMetrics, route: str, method: str, status: int, seconds: float) -> None:
    """Count and log a request; ``status`` is 0 if the client disconnected."""
    metrics.count_request(route, method, status, seconds)
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
    """Limits open connections, the time that each may be idle, and the time a client may take to read a response.

    uvicorn's own settings do not do this. Its keep-alive timeout starts with the first response and stops at the next
    byte: a client that connects and sends nothing, or sends a head byte by byte (slowloris), or the body of a request
    that has been answered, or reads no response, would occupy a connection for ever. Beyond its ``limit_concurrency``
    every request gets 503, also those of clients that are connected already, and connections still pile up until the
    process runs out of file descriptors.

    What a connection waits for is known from two sides: the protocol (:meth:`make_protocol`) knows when a connection is
    opened and closed and whether a response is delivered; this ASGI middleware knows when a request's head is complete
    and when its response has been sent. In between, the timeouts of the application apply, such as that for slow
    bodies.
    """

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics, limits: Limits) -> None:
        """Wrap an application; refused connections and invalid requests are counted in ``metrics``."""
        self._app, self._metrics, self._limits = app, metrics, limits
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
            connection: _Connection | None = None

            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                errors = _ErrorTransport(transport, limiter._metrics)
                super().connection_made(errors)  # type: ignore[arg-type]
                self.connection = limiter._open(transport)

            def data_received(self, data: bytes) -> None:
                for start in range(0, len(data), _SLICE_BYTES):
                    if not self.transport.is_closing():
                        self._parse(data[start : start + _SLICE_BYTES])

            def _parse(self, data: bytes) -> None:
                started = time.thread_time()
                try:
                    super().data_received(data)
                except h11.LocalProtocolError:
                    # What follows an answered request is invalid, and uvicorn tries to answer once more.
                    self.transport.abort()
                if self.connection is not None and self.connection.is_costly(time.thread_time() - started, len(data)):
                    limiter._refuse(self.transport, _COSTLY)

            def connection_lost(self, exc: Exception | None) -> None:
                if self.connection is not None:
                    limiter._forget(self.connection)
                super().connection_lost(exc)

            def pause_writing(self) -> None:
                super().pause_writing()
                if self.connection is not None:
                    self.connection.start_delivery()

            def resume_writing(self) -> None:
                super().resume_writing()
                if self.connection is not None:
                    self.connection.end_delivery()

        return LimitedProtocol

    def _open(self, transport: asyncio.Transport) -> _Connection | None:
        """Return the record of a new connection, or None if there are too many."""
        # uvicorn writes head and body of a response separately. With Nagle's algorithm the body would wait for the
        # client's delayed acknowledgement of the head, 40 ms. asyncio itself sets the option only on sockets that
        # report IPPROTO_TCP, which accepted ones do not.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Writing is paused, and its time measured, as soon as the system's own buffer is full.
        transport.set_write_buffer_limits(high=0)
        connection = _Connection(transport, self._limits)
        if not self._make_room(connection.client):
            connection.stop()
            self._refuse(transport, _TOO_MANY)
            return None
        self._connections[connection.endpoints] = connection
        return connection

    def _refuse(self, transport: asyncio.Transport, error: RequestError) -> None:
        record_request(self._metrics, _OTHER, _OTHER, error.status, 0.0)
        transport.write(_format_error(error))
        transport.close()

    def _make_room(self, client: str) -> bool:
        """Return whether a client may open a connection; it may have to lose another one for it."""
        own = [connection for connection in self._connections.values() if connection.client == client]
        if len(own) >= self._limits.client_connections:
            waiting = [connection for connection in own if connection.waiting_since is not None]
            if not waiting:
                return False
            longest = min(waiting, key=lambda connection: connection.waiting_since or 0.0)
            self._forget(longest)
            longest.abort()
        return len(self._connections) < self._limits.connections

    def _forget(self, connection: _Connection) -> None:
        connection.stop()
        self._connections.pop(connection.endpoints, None)


class _Connection:
    """An open connection with the timers that close it: when it is idle, and when its client does not read."""

    def __init__(self, transport: asyncio.Transport, limits: Limits) -> None:
        self._transport, self._limits = transport, limits
        self._loop = asyncio.get_running_loop()
        names = ("peername", "sockname")
        # IPv6 has two further numbers, which an ASGI scope does not.
        self.endpoints: _Endpoints = tuple(
            part for name in names for part in (transport.get_extra_info(name) or ())[:2]
        )
        self.client = identify_client(str(self.endpoints[0])) if self.endpoints else ""
        self._requests = 0
        self._idle_since: float | None = None
        self._unread_since: float | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._start_idling()

    @property
    def waiting_since(self) -> float | None:
        """The time since which the connection waits for its client, except for a body; None if it does not."""
        return self._idle_since if self._unread_since is None else self._unread_since

    def start_request(self) -> None:
        # With pipelining, the next request may start before the task of the previous one has ended.
        self._requests += 1
        self._idle_since = None
        self._idle_timer.cancel()

    def end_request(self) -> None:
        self._requests -= 1
        if not self._requests:
            self._start_idling()

    def start_delivery(self) -> None:
        """Part of a response does not fit into the system's buffer: the client must read."""
        self._unread_since = self._loop.time()
        self._unread_timer = self._loop.call_later(self._seconds_to_read, self.abort)

    def end_delivery(self) -> None:
        if self._unread_timer is not None and self._unread_since is not None:
            self._unread_timer.cancel()
            self._seconds_to_read -= self._loop.time() - self._unread_since
        self._unread_since = None

    def is_costly(self, seconds: float, size: int) -> bool:
        """Account for the time that parsing so many bytes took; return whether it is too much for one request."""
        self._parse_seconds += seconds - size * _PARSE_SECONDS_PER_BYTE
        return self._parse_seconds > _PARSE_SECONDS

    def stop(self) -> None:
        self._idle_timer.cancel()
        if self._unread_timer is not None:
            self._unread_timer.cancel()

    def abort(self) -> None:
        """Reset the connection, so that the system also discards what the client has not read."""
        at_once = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        self._transport.abort()

    def _start_idling(self) -> None:
        # Pipelined requests share the time for reading: otherwise each would start it again.
        self._seconds_to_read = self._limits.seconds
        self._parse_seconds = 0.0
        self._idle_since = self._loop.time()
        # close() still sends what a slow client has not read of its response, which abort() would not.
        self._idle_timer = self._loop.call_later(self._limits.head_seconds, self._transport.close)


def identify_client(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or the /64 network of an IPv6 address, a site's smallest."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ip.ipv4_mapped or ipaddress.ip_network((ip, 64), strict=False))
    return str(ip)


class _ErrorTransport:
    """Passes everything on to a connection's transport, but replaces uvicorn's own errors with those of the service."""

    def __init__(self, transport: asyncio.Transport, metrics: ServiceMetrics) -> None:
        self._transport, self._metrics = transport, metrics
        self._replaced = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._replaced:
            return
        match = _PLAIN_ERROR.match(data)
        if match is None:
            self._transport.write(data)
            return
        self._replaced = True
        status = int(match[1])
        record_request(self._metrics, _OTHER, _OTHER, status, 0.0)
        self._transport.write(
            _format_error(RequestError(status, "invalid HTTP request" if status < 500 else "internal error"))
        )


def _format_error(error: RequestError) -> bytes:
    """Return an error response as it is sent, for connections on which no request can be answered."""
    response = make_error_response(error, close=True)
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}".encode()]
    lines += [name + b": " + value for name, value in response.raw_headers]
    return b"\r\n".join([*lines, b"", bytes(response.body)])
