"""Run `agegen serve` in a separate process, for tests that send requests to it."""

import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

# Starts a service with limits that have no command-line option, so that tests can reach them.
SCRIPT = """
import logging, sys
from agegen.errors import AgegenError
from agegen.serve.config import Limits, ServeConfig
from agegen.serve.serve import serve

logging.basicConfig()
logging.getLogger("agegen.serve").setLevel(logging.INFO)
for start in serve(ServeConfig(port=0, {options}), Limits({limits})):
    print(start.address, file=sys.stderr, flush=True)
"""


class Service:
    """A running service: its process, address and port."""

    def __init__(self, command, env):
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, env=env, text=True)
        first = self.process.stderr.readline()
        match = re.search(r"http://[^\s;]+", first)
        assert match, first + self.process.stderr.read()
        self.address = match[0]
        self.port = int(self.address.rpartition(":")[2])

    def stop(self, number=signal.SIGTERM):
        """Send a signal to the service; return its exit code and its log."""
        self.process.send_signal(number)
        watchdog = threading.Timer(60, self.process.kill)
        watchdog.start()
        # communicate() would lose what the first readline() has read ahead.
        log = self.process.stderr.read()
        watchdog.cancel()
        return self.process.wait(), log


@contextmanager
def run_service(*words, limits="", options="", script="", **env):
    """Run `agegen serve` on a free port with these options (default: one model), or with custom limits.

    `script`: Python code that runs the command line, instead of `python -m agegen`.
    """
    program = ["-c", script] if script else ["-m", "agegen"]
    command = [sys.executable, *program, "serve", "--port", "0", *(map(str, words or ("--model", "compact")))]
    if limits or options:
        options = options or "models=('compact',)"
        command = [sys.executable, "-c", SCRIPT.format(limits=limits, options=options)]
    service = Service(command, os.environ | env)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.process.kill()
            service.process.communicate()
