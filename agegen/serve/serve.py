"""``agegen serve``: load the models, listen on a socket, and answer requests until SIGTERM or Ctrl-C."""

from __future__ import annotations

import logging
import signal
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from agegen.errors import AgegenError
from agegen.machine import use_one_thread_each
from agegen.predict.extraction import NO_DETECTOR
from agegen.serve.app import Service, make_app
from agegen.serve.config import Limits, ServeConfig
from agegen.serve.metrics import ServiceMetrics
from agegen.serve.models import ServedModel, load_models
from agegen.serve.requests import RequestQueue
from agegen.serve.security import LOG, ConnectionLimiter, check_token, is_loopback, parse_origin

# Connections that the kernel holds until they are accepted; more than the clients that connect at the same moment.
_BACKLOG = 512
# Of --timeout, what is left after SIGTERM to answer the remaining requests and to end the threads: uvicorn notices the
# signal within 0.1 s and waits another 0.1 s.
_ENDING_SECONDS, _THREAD_SECONDS = 1.0, 0.5


@dataclass(frozen=True)
class ServeStart:
    """The service accepts connections: its address, its models, its face detector, and a warning about the token."""

    address: str
    models: tuple[str, ...]
    detector: str
    warning: str | None = None


class UnfinishedError(AgegenError):
    """The service has stopped, but threads that cannot be stopped are still working: end the process."""


def serve(config: ServeConfig, limits: Limits | None = None) -> Iterator[ServeStart]:
    """Yield once when the models are loaded and the socket is bound, then answer requests until SIGTERM or Ctrl-C.

    Requests in progress at that time are still answered, for about a second less than ``--timeout``; this function then
    returns or raises within that timeout. ``limits`` replace those of the options.

    Raises:
        AgegenError: a model cannot be loaded, the address cannot be bound, or the token is invalid, or missing although
            other machines can reach the address or other web pages are allowed.
        UnfinishedError: some threads do not end; the interpreter would wait for them at its exit.
    """
    warning = _check_access(config)
    origins = [parse_origin(origin) for origin in config.allow_origins]
    limits = config.make_limits() if limits is None else limits
    with closing(_bind(config.host, config.port)) as listener:
        metrics = ServiceMetrics()
        models = load_models(config.models, config.runs, config.detector, metrics.count_batch, config.precision)
        use_one_thread_each()
        queue = RequestQueue(limits)
        app = make_app(Service(models, queue, metrics), config.token, config.host, origins)
        detector = next(iter(models.values())).estimator.detector
        yield ServeStart(_format_address(config.host, listener), tuple(models), detector, warning)
        try:
            _run(app, metrics, listener, limits)
        finally:
            _end_threads(queue, models.values())


def describe_detector(detector: str) -> str:
    """Return how faces are found, for the terminal."""
    return "images are taken as aligned crops" if detector == NO_DETECTOR else f"face detector: {detector}"


def _check_access(config: ServeConfig) -> str | None:
    """Return a warning about the token, if there is reason for one; raise an error if it is invalid or missing."""
    if config.token is not None:
        return check_token(config.token)
    if not is_loopback(config.host):
        raise AgegenError(
            f"--host {config.host} is reachable from other machines. Give --token TOKEN (or set $AGEGEN_TOKEN); "
            "clients must send it."
        )
    if config.allow_origins:
        raise AgegenError("--allow-origin requires --token TOKEN (or $AGEGEN_TOKEN); the web pages must send it.")
    return None


def _bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AgegenError(
            f"cannot listen on {host}, port {port}: {reason}. Choose another port with --port."
        ) from error


def _format_address(host: str, listener: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}"


def _run(app: ASGIApp, metrics: ServiceMetrics, listener: socket.socket, limits: Limits) -> None:
    # Their messages may contain what clients send; SecurityMiddleware writes its own log.
    for name in ("uvicorn", "python_multipart"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    limiter = ConnectionLimiter(app, metrics, limits)
    settings = uvicorn.Config(
        limiter,
        http=limiter.make_protocol(),
        # uvloop's sockets have no options to set.
        loop="asyncio",
        ws="none",
        lifespan="off",
        backlog=_BACKLOG,
        log_config=None,
        access_log=False,
        server_header=False,
        # X-Forwarded-For would replace the client's address, by which ConnectionLimiter knows a connection.
        proxy_headers=False,
        timeout_graceful_shutdown=max(0, int(limits.seconds - _ENDING_SECONDS)),
    )
    with _ignore_signals():
        uvicorn.Server(settings).run(sockets=[listener])


def _end_threads(queue: RequestQueue, models: Collection[ServedModel]) -> None:
    deadline = time.monotonic() + _THREAD_SECONDS
    unfinished = queue.close(_THREAD_SECONDS)
    ended = [model.batcher.close(max(0.1, deadline - time.monotonic())) for model in models]
    if unfinished or not all(ended):
        LOG.error("stopped at --timeout with %d images and %d batches in progress", unfinished, len(ended) - sum(ended))
        raise UnfinishedError("the service has stopped with images in progress. Send fewer or smaller images.")


@contextmanager
def _ignore_signals() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM unless uvicorn handles them: once it has stopped, it raises the signal again."""
    names = (signal.SIGINT, signal.SIGTERM)
    before = {name: signal.signal(name, lambda *_: None) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
