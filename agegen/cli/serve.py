"""``agegen serve``."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from agegen.cli.app import Offline, app, make_notice_console, obey_offline, show_work
from agegen.errors import AgegenError
from agegen.machine import count_cores


@app.command()
def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Weights that ship, NAME or NAME/WEIGHTS; may be given again. Default: all that need no torch.",
        ),
    ] = None,
    run: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="A run of your own, or hf://OWNER/NAME; may be given again.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen on; one that others reach wants a --token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(envvar="AGEGEN_TOKEN", help="What clients must send: Authorization: Bearer TOKEN."),
    ] = None,
    detector: Annotated[
        str, typer.Option(metavar="auto|mtcnn|yunet|none", help="What finds the faces; none takes aligned crops.")
    ] = "auto",
    threads: Annotated[int | None, typer.Option(help="That search pictures.", show_default="one per core")] = None,
    queue: Annotated[int, typer.Option(help="How many requests may be under way at once; others get 429.")] = 64,
    max_body: Annotated[int, typer.Option(metavar="MB", help="Largest body of a request.")] = 25,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="For a body to arrive, and for its answer.")] = 30.0,
    log: Annotated[bool, typer.Option(help="A line on stderr for each request; no names, no pictures.")] = True,
    offline: Offline = False,
) -> None:
    """Answer requests with faces: a page to try at /, and POST /v1/faces for programs (`agegen help serve`).

    Nothing is kept. Ends on Ctrl-C or SIGTERM, after what it has begun.

    Example: agegen serve --port 8080
    """
    obey_offline(offline)
    notices = make_notice_console()
    with show_work(notices):
        try:
            from agegen.serve.limits import Limits
            from agegen.serve.serve import ServeConfig, describe_detector
            from agegen.serve.serve import serve as run_service
        except ModuleNotFoundError as error:
            raise AgegenError('agegen serve needs other packages: pip install "agegen[serve]"') from error
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("agegen.serve").setLevel(logging.INFO if log else logging.ERROR)
    threads = count_cores() if threads is None else threads
    limits = Limits(body=max_body * 1_000_000, requests=queue, seconds=timeout, threads=threads)
    config = ServeConfig(tuple(model or ()), tuple(run or ()), host, port, token, detector, limits)
    for start in run_service(config):
        notices.print(
            f"{start.address} answers; models: {', '.join(start.models)}; {describe_detector(start.detector)}",
            soft_wrap=True,
        )
