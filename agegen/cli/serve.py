"""``agegen serve``."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from agegen.cli.app import USE, Offline, add_command, make_notice_console, obey_offline, show_work
from agegen.errors import AgegenError
from agegen.machine import count_cores
from agegen.options import COMPUTE, MODEL
from agegen.predict.config import DetectorOption

_SERVER, _LIMITS = "Server", "Limits"


@add_command("serve", "agegen serve --port 8080", USE)
def serve(
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on; one that other machines can reach requires --token.", rich_help_panel=_SERVER
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port; 0 chooses a free one.", rich_help_panel=_SERVER)
    ] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="AGEGEN_TOKEN",
            help="Token that clients must send (Authorization: Bearer TOKEN).",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    log: Annotated[
        bool,
        typer.Option(help="Log one line per request to stderr, without file names.", rich_help_panel=_SERVER),
    ] = True,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Bundled weights, NAME or NAME/WEIGHTS (repeatable). Default: all that need no torch.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    run: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", help="Your own run, or hf://OWNER/NAME (repeatable).", rich_help_panel=MODEL),
    ] = None,
    detector: DetectorOption = "auto",
    queue: Annotated[
        int, typer.Option(help="Maximum number of requests in progress; others get 429.", rich_help_panel=_LIMITS)
    ] = 64,
    max_body: Annotated[
        int, typer.Option(metavar="MB", help="Maximum size of a request body.", rich_help_panel=_LIMITS)
    ] = 25,
    timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", help="Time for a body to arrive, and for its response.", rich_help_panel=_LIMITS
        ),
    ] = 30.0,
    threads: Annotated[
        int | None,
        typer.Option(help="Number of face detection threads.", show_default="one per core", rich_help_panel=COMPUTE),
    ] = None,
    offline: Offline = False,
) -> None:
    """Serve predictions over HTTP, with a web page at /.

    Programs send POST /v1/faces; see `agegen help serve`. Nothing is stored. SIGTERM and Ctrl-C finish the requests in
    progress, then end the service.
    """
    obey_offline(offline)
    notices = make_notice_console()
    with show_work(notices):
        try:
            from agegen.serve.limits import Limits
            from agegen.serve.serve import ServeConfig, describe_detector
            from agegen.serve.serve import serve as run_service
        except ModuleNotFoundError as error:
            raise AgegenError('agegen serve requires further packages: pip install "agegen[serve]"') from error
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("agegen.serve").setLevel(logging.INFO if log else logging.ERROR)
    threads = count_cores() if threads is None else threads
    limits = Limits(body=max_body * 1_000_000, requests=queue, seconds=timeout, threads=threads)
    config = ServeConfig(tuple(model or ()), tuple(run or ()), host, port, token, detector, limits)
    for start in run_service(config):
        notices.print(
            f"listening on {start.address}; models: {', '.join(start.models)}; {describe_detector(start.detector)}",
            soft_wrap=True,
        )
