"""A service of `agegen serve` in a process of its own, for tests that talk to it."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

# Bounds that the command line doesn't name, small enough for a test to reach them.
SCRIPT = """
import logging, sys
from agegen.errors import AgegenError
from agegen.serve.limits import Limits
from agegen.serve.serve import ServeConfig, serve

logging.basicConfig()
logging.getLogger("agegen.serve").setLevel(logging.INFO)
for start in serve(ServeConfig(port=0, limits=Limits({limits}), {options})):
    print(start.address, file=sys.stderr, flush=True)
"""


class Service:
    """A service that runs: its process, its address, and after :meth:`stop` what it wrote to stderr."""

    def __init__(self, command, env):
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, env=env, text=True)
        first = self.process.stderr.readline()
        match = re.search(r"http://\S+", first)
        assert match, first + self.process.stderr.read()
        self.address = match[0]
        self.port = int(self.address.rpartition(":")[2])

    def stop(self, number=signal.SIGTERM):
        """Send a signal; return the exit code and all that was logged."""
        self.process.send_signal(number)
        _, log = self.process.communicate(timeout=60)
        return self.process.returncode, log


@contextmanager
def run_service(*words, limits="", options="", **env):
    """Run `agegen serve` with options, or with bounds of its own; free port, one model unless told otherwise."""
    command = [sys.executable, "-m", "agegen", "serve", "--port", "0", *(map(str, words or ("--model", "compact")))]
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
