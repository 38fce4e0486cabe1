"""The options of ``agegen serve`` and the limits of the service."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

import typer

from agegen.errors import AgegenError
from agegen.machine import count_cores
from agegen.options import COMPUTE, MODEL, InferencePrecisionOption
from agegen.predict.config import DetectorOption

_SERVER, _LIMITS = "Server", "Limits"


@dataclass(frozen=True)
class Limits:
    """Limits of the service.

    Attributes:
        body: size of a request body, in bytes.
        images: number of images per request.
        pages: number of pages per image file; a TIFF of thousands of pages would occupy a thread for minutes.
        requests: number of requests in the queue (waiting or in progress, their bodies complete); further ones get 429.
        held: total size of all request bodies in memory, in bytes; further requests get 429.
        seconds: timeout for receiving a body, again for computing its predictions, and again for delivering the
            response; also the time in which the service ends after SIGTERM.
        head_seconds: time a connection may stay open without a request in progress; so also the timeout for receiving
            the head of a request.
        connections: number of open connections.
        client_connections: number of open connections from one address; beyond it, those that wait for their client
            are closed, the one that has waited longest first.
        threads: number of threads that decode images and detect faces.
    """

    # Larger than the JPEG files of current phones and cameras.
    body: int = 25_000_000
    images: int = 32
    pages: int = 32
    requests: int = 64
    held: int = 400_000_000
    seconds: float = 30.0
    head_seconds: float = 10.0
    # Linux allows a process 1,024 open files by default.
    connections: int = 500
    # More than the requests in the queue, since a reverse proxy is a single client; and a fifth of all, so that it
    # takes five machines to occupy them.
    client_connections: int = 100
    threads: int = field(default_factory=count_cores)

    def __post_init__(self) -> None:
        if not (self.body >= 1 and self.requests >= 1 and self.threads >= 1 and 0 < self.seconds < math.inf):
            raise AgegenError("--max-body, --queue, --threads and --timeout must be greater than 0")


@dataclass(frozen=True)
class ServeConfig:
    """Options of ``agegen serve``; without ``models`` and ``runs``, it serves all bundled weights with an ONNX file."""

    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on; one that other machines can reach requires --token.", rich_help_panel=_SERVER
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port; 0 chooses a free one.", rich_help_panel=_SERVER)
    ] = 8000
    token: Annotated[
        str | None,
        typer.Option(
            envvar="AGEGEN_TOKEN",
            help="Token that clients must send (Authorization: Bearer TOKEN).",
            rich_help_panel=_SERVER,
        ),
    ] = None
    allow_origins: Annotated[
        tuple[str, ...],
        typer.Option(
            "--allow-origin",
            metavar="ORIGIN",
            help="Let web pages of https://HOST send requests; requires --token (repeatable).",
            rich_help_panel=_SERVER,
        ),
    ] = ()
    log: Annotated[
        bool,
        typer.Option(help="Log one line per request to stderr, without file names.", rich_help_panel=_SERVER),
    ] = True
    models: Annotated[
        tuple[str, ...],
        typer.Option(
            "--model",
            metavar="NAME",
            help="Bundled weights, NAME or NAME/WEIGHTS (repeatable). Default: all that need no torch.",
            rich_help_panel=MODEL,
        ),
    ] = ()
    runs: Annotated[
        tuple[str, ...],
        typer.Option(
            "--run", metavar="RUN", help="Your own run, or hf://OWNER/NAME (repeatable).", rich_help_panel=MODEL
        ),
    ] = ()
    detector: DetectorOption = "auto"
    precision: InferencePrecisionOption = "auto"
    queue: Annotated[
        int, typer.Option(help="Maximum number of requests in progress; others get 429.", rich_help_panel=_LIMITS)
    ] = Limits.requests
    max_body: Annotated[
        int, typer.Option(metavar="MB", help="Maximum size of a request body.", rich_help_panel=_LIMITS)
    ] = Limits.body // 1_000_000
    timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="Time for a body to arrive, for its result, and for the client to read it.",
            rich_help_panel=_LIMITS,
        ),
    ] = Limits.seconds
    threads: Annotated[
        int | None,
        typer.Option(help="Number of face detection threads.", show_default="one per core", rich_help_panel=COMPUTE),
    ] = None

    def make_limits(self) -> Limits:
        """Return the limits of the service.

        Raises:
            AgegenError: one is not positive.
        """
        threads = count_cores() if self.threads is None else self.threads
        return Limits(body=self.max_body * 1_000_000, requests=self.queue, seconds=self.timeout, threads=threads)
