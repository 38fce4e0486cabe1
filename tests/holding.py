"""Programs held at a known point, so that neither a quick nor a loaded machine decides where a signal meets them."""

import signal
import subprocess
import sys
import time

# Run before the command line: wraps a function of agegen's so that, the given time it is called, it touches a file
# and waits until another one is there.
_HOLD = """
import importlib, pathlib, sys, time
module, _, name = {target!r}.rpartition(".")
owner = importlib.import_module(module.removesuffix(".StateFiles"))
owner = getattr(owner, "StateFiles") if module.endswith(".StateFiles") else owner
original, calls = getattr(owner, name), []
def held(*arguments, **options):
    result = None if {before!r} else original(*arguments, **options)
    calls.append(1)
    if len(calls) == {call!r}:
        pathlib.Path({reached!r}).touch()
        while not pathlib.Path({release!r}).exists():
            time.sleep(0.01)
    return original(*arguments, **options) if {before!r} else result
setattr(owner, name, held)
sys.argv = ["agegen", *{arguments!r}]
from agegen.cli import main
main()
"""


def listen():
    """Hear Ctrl-C, in a child that is about to start: shells let what they start in the background ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Held:
    """A command line that stops where ``target`` (module.function) is called for the ``call``-th time."""

    def __init__(self, folder, arguments, target, call, before=False, **options):
        self.reached, self.release = folder / "reached", folder / "release"
        code = _HOLD.format(
            target=target,
            call=call,
            before=before,
            arguments=[str(argument) for argument in arguments],
            reached=str(self.reached),
            release=str(self.release),
        )
        self.process = subprocess.Popen([sys.executable, "-c", code], preexec_fn=listen, **options)

    def wait(self, seconds=120):
        """Wait until it is there."""
        deadline = time.monotonic() + seconds
        while not self.reached.exists():
            assert self.process.poll() is None, "it ended before it came there"
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def let_go(self):
        self.release.touch()
