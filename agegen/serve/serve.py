"""``agegen serve``, whole: models loaded, a socket bound, requests answered until the process is told to end."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from agegen.errors import AgegenError
from agegen.machine import use_one_thread_each
from agegen.predict.extraction import NO_DETECTOR
from agegen.serve.app import Service, make_app
from agegen.serve.limits import Limits
from agegen.serve.metrics import Measures
from agegen.serve.models import load_models
from agegen.serve.requests import Desk
from agegen.serve.security import is_loopback

_REASON = {"status": 503, "reason": "too many connections are open; try again"}


class BoundedProtocol(H11Protocol):
    """Closes connections that are silent, or send a head by the drop (slowloris), and refuses more than are allowed.

    Bodies that come by the drop are bounded by who reads them.
    """

    limits = Limits()
    _head_due: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the head of the first request."""
        super().connection_made(transport)
        # asyncio sets it on sockets alone that name their protocol, and an accepted one doesn't: without it the second
        # part of an answer waits 40 ms for the first to be acknowledged.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > self.limits.connections:
            transport.write(_format_refusal())
            transport.close()
            return
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Take what comes; a head that has begun must end in time."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._head_due = None
            return
        self._wait_for_head()

    def _wait_for_head(self) -> None:
        if self._head_due is None:
            self._head_due = self.loop.time() + self.limits.head_seconds
        # The timer that uvicorn has for silence between requests, and cancels when anything comes.
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_at(self._head_due, self.timeout_keep_alive_handler)


def _format_refusal() -> bytes:
    body = json.dumps(_REASON).encode()
    head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Retry-After: 2\r\nConnection: close\r\n\r\n".encode() + body


# Connections that may wait to be accepted; more than clients ever come with at once.
_BACKLOG = 512


@dataclass(frozen=True)
class ServeConfig:
    """Options of ``agegen serve``; no ``models`` and no ``runs`` stand for all that ship ready for onnxruntime."""

    models: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    detector: str = "auto"
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class ServeStart:
    """That the service answers from now on, where, with which models and detector."""

    address: str
    models: tuple[str, ...]
    detector: str


def serve(config: ServeConfig) -> Iterator[ServeStart]:
    """Yield once, when the service is about to answer; then answer until SIGTERM or Ctrl-C, and what was begun by then.

    Raises:
        AgegenError: a model can't be loaded, the address can't be bound, or one that others reach has no token.
    """
    if not is_loopback(config.host) and not config.token:
        raise AgegenError(
            f"--host {config.host} is reached from other machines: give --token TOKEN (or $AGEGEN_TOKEN), which "
            "they must send"
        )
    with closing(_bind(config.host, config.port)) as listener:
        measures = Measures()
        models = load_models(config.models, config.runs, config.detector, measures.count_batch)
        use_one_thread_each()
        desk = Desk(config.limits)
        app = make_app(Service(models, desk, measures), config.token, config.host)
        detector = next(iter(models.values())).estimator.detector
        yield ServeStart(_format_address(config.host, listener), tuple(models), detector)
        try:
            _run(app, listener, config.limits)
        finally:
            desk.close()
            for model in models.values():
                model.batcher.close()


def describe_detector(detector: str) -> str:
    """Return in words what finds the faces."""
    return "pictures are taken as aligned crops" if detector == NO_DETECTOR else f"faces found by {detector}"


def _bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AgegenError(f"can't listen on {host}, port {port}: {reason}; choose another with --port") from error


def _format_address(host: str, listener: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}"


def _run(app: Any, listener: socket.socket, limits: Limits) -> None:
    # What it says of requests could hold what clients send; the guard logs a line of its own.
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    protocol = type("Protocol", (BoundedProtocol,), {"limits": limits})
    settings = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        # A body may take so long to arrive, and the estimates as long again.
        timeout_graceful_shutdown=int(2 * limits.seconds) + 1,
    )
    with _end_quietly():
        uvicorn.Server(settings).run(sockets=[listener])


@contextmanager
def _end_quietly() -> Iterator[None]:
    """Let the signals that end the service, which uvicorn raises anew when it has ended, do no more."""
    names = (signal.SIGINT, signal.SIGTERM)
    before = {name: signal.signal(name, lambda *_: None) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
