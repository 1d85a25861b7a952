"""Run code in a child process that is killed with SIGKILL at a chosen instant."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

_INSTANTS = {
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.truncate",
    "os.utime",
    "shutil.rmtree",
    "fcntl.flock",
}


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads: they are not used
        return os.fork()


class _Countdown:
    def __init__(self, instant: int) -> None:
        self.left = instant

    def tick(self) -> None:
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, arguments: tuple[object, ...]) -> None:
        del arguments
        if event in _INSTANTS:
            self.tick()

    def fsync(self, handle: int) -> None:
        del handle  # the kernel keeps what a killed process wrote: no need to wait for the disk
        self.tick()


def killed_at(instant: int, work: Callable[[], object]) -> bool:
    """Run `work` in a forked child, killed before its `instant`-th call to the file system.

    True if it was killed, False if it came to its end before that.
    """
    child = _fork()
    if child == 0:
        countdown = _Countdown(instant)
        code = 1
        try:
            os.fsync = countdown.fsync
            sys.addaudithook(countdown.audit)
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed by itself"
    return os.WIFSIGNALED(status)


class Helper:
    """A forked child that runs `work`, with `ready` to tell the parent and `stop` to end it."""

    def __init__(self, work: Callable[[Callable[[], None]], object]) -> None:
        self._ready, ours = os.pipe()
        self.pid = _fork()
        if self.pid == 0:
            code = 1
            try:
                work(lambda: _say(ours))
                code = 0
            finally:
                os._exit(code)
        os.close(ours)

    def wait_until_ready(self) -> None:
        assert os.read(self._ready, 1) == b"r", "the child ended before it was ready"

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.join()

    def join(self) -> int:
        """Exit code of the child, negative for a signal."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self._ready)
        return os.waitstatus_to_exitcode(status)


def _say(handle: int) -> None:
    os.write(handle, b"r")


def touch_later(path: Path) -> None:
    """Move a file's time on by a second, as an edit does."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
