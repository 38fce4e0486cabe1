"""Commands that stop at a known point, so that a test can send a signal there however fast the machine is."""

import signal
import subprocess
import sys
import time

# Runs the command line with one function of agegen replaced. In its n-th call the function creates a file and waits
# until another one exists.
_SCRIPT = """
import importlib, pathlib, sys, time
module, _, name = {target!r}.rpartition(".")
owner = importlib.import_module(module.removesuffix(".StateFiles"))
owner = getattr(owner, "StateFiles") if module.endswith(".StateFiles") else owner
original, calls = getattr(owner, name), []
def wait_in_call(*arguments, **options):
    result = None if {before!r} else original(*arguments, **options)
    calls.append(1)
    if len(calls) == {call!r}:
        pathlib.Path({reached!r}).touch()
        while not pathlib.Path({released!r}).exists():
            time.sleep(0.01)
    return original(*arguments, **options) if {before!r} else result
setattr(owner, name, wait_in_call)
sys.argv = ["agegen", *{arguments!r}]
from agegen.cli import main
main()
"""


def restore_ctrl_c():
    """Let a child process receive Ctrl-C: shells make the processes that they start in the background ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class StoppedCommand:
    """A command line that waits in the ``call``-th call of ``target`` (module.function), before or after its work."""

    def __init__(self, folder, arguments, target, call, before=False, **options):
        self._reached, self._released = folder / "reached", folder / "released"
        code = _SCRIPT.format(
            target=target,
            call=call,
            before=before,
            arguments=[str(argument) for argument in arguments],
            reached=str(self._reached),
            released=str(self._released),
        )
        self.process = subprocess.Popen([sys.executable, "-c", code], preexec_fn=restore_ctrl_c, **options)

    def wait(self, seconds=120):
        """Wait until the command has reached the call."""
        deadline = time.monotonic() + seconds
        while not self._reached.exists():
            assert self.process.poll() is None, "the command ended before it reached the call"
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def release(self):
        """Let the command continue."""
        self._released.touch()
