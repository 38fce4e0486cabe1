"""``agegen serve``."""

from __future__ import annotations

import logging
import os

from agegen.cli.app import USE, add_command, make_notice_console, obey_offline, show_work
from agegen.errors import AgegenError
from agegen.options import OfflineOption, with_options
from agegen.serve.config import ServeConfig


@add_command("serve", "agegen serve --port 8080", USE)
@with_options(ServeConfig)
def serve(config: ServeConfig, *, offline: OfflineOption = False) -> None:
    """Serve predictions over HTTP, with a web page at /.

    Programs send POST /v1/faces; see `agegen help serve`. Nothing is stored. SIGTERM and Ctrl-C finish the requests in
    progress, then end the service, within --timeout.
    """
    obey_offline(offline)
    notices = make_notice_console()
    if config.token is None and os.environ.get("AGEGEN_TOKEN") == "":
        # Typer takes an empty variable for none. It is a mistake: the service would be open to every local process.
        raise AgegenError("$AGEGEN_TOKEN is empty. Set it to a token, or unset it.")
    with show_work(notices):
        try:
            from agegen.serve.serve import UnfinishedError, describe_detector
            from agegen.serve.serve import serve as run_service
        except ModuleNotFoundError as error:
            raise AgegenError('agegen serve requires further packages: pip install "agegen[serve]"') from error
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("agegen.serve").setLevel(logging.INFO if config.log else logging.ERROR)
    try:
        for start in run_service(config):
            notices.print(
                f"listening on {start.address}; models: {', '.join(start.models)}; {describe_detector(start.detector)}",
                soft_wrap=True,
            )
            if start.warning:
                notices.print(f"warning: {start.warning}", style="yellow", soft_wrap=True)
    except UnfinishedError as error:
        notices.print(f"error: {error}", style="red", soft_wrap=True)
        # Threads cannot be stopped, and the interpreter would wait for them.
        os._exit(error.exit_code)
