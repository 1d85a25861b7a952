"""Guarded calls to W&B: work continues when it raises or hangs."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")
_TEARDOWN_SECONDS = 20.0
_USER_OF_A_URL = re.compile(r"//[^/\s]*@")
_LOG = logging.getLogger(__name__)


class Boundary:
    """Calls W&B until it fails for the first time; `failure` then says why, and no later call
    reaches it.

    A call runs in a thread that may be left behind: W&B waits for its service process without a
    limit in many places, and ends the program (SystemExit) when that process was killed."""

    def __init__(self) -> None:
        self.failure: str | None = None

    def call(self, what: str, act: Callable[[], T], *, seconds: float) -> T | None:
        """What `act` returns; None when W&B fails now, has failed before or takes too long."""
        if self.failure is not None:
            return None
        attempt = _Attempt(act)
        if not attempt.ended_within(seconds):
            _end(_service())  # else the end of this process waits for it too
            self.fail(f"{what}: no answer within {seconds:.0f} seconds")
        elif attempt.error is not None:
            self.fail(f"{what}: {brief(attempt.error)}")
        return attempt.result

    def fail(self, why: str) -> None:
        """Remember the first failure."""
        if self.failure is None:
            self.failure = why
            _LOG.warning("W&B: %s; going on without it, the JSON lines hold everything", why)

    @staticmethod
    def reset() -> None:
        """End W&B's service process. The next run starts a new one."""
        service = _service()
        _Attempt(_teardown).ended_within(_TEARDOWN_SECONDS)
        _end(service)


def brief(error: BaseException) -> str:
    """The first line of what W&B says, with the kind where that alone would be a riddle."""
    lines = without_user(str(error)).strip().splitlines()
    kind = type(error).__name__
    return f"{kind}: {lines[0]}" if lines and len(lines[0]) < 20 else lines[0] if lines else kind


def without_user(text: str) -> str:
    """The text without the users and passwords of its URLs."""
    return _USER_OF_A_URL.sub("//", text)


class _Attempt(Generic[T]):
    """`act`, begun in a thread that does not keep the process alive."""

    def __init__(self, act: Callable[[], T]) -> None:
        self.result: T | None = None
        self.error: BaseException | None = None
        self._act = act
        self._thread = threading.Thread(target=self._run, name="wandb-call", daemon=True)
        self._thread.start()

    def ended_within(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self.result = self._act()
        except BaseException as error:  # noqa: BLE001  handed to the caller; no signal arrives here
            self.error = error


def _teardown() -> None:
    found: Any = sys.modules.get("wandb")
    if found is not None:
        found.teardown()


def _service() -> subprocess.Popen[bytes] | None:
    """The service process that W&B has started in this process, if it has. Imports nothing: that
    may raise, or wait for a thread that was left behind in the middle of an import."""
    found: Any = sys.modules.get("wandb.sdk.wandb_setup")
    for name in ("_singleton", "_connection", "_proc", "_process"):
        found = getattr(found, name, None)
    return cast("subprocess.Popen[bytes] | None", found)


def _end(service: subprocess.Popen[bytes] | None) -> None:
    """By force where it has not ended; W&B leaves one behind that it can no longer talk to."""
    if service is not None:
        service.kill()
        service.wait()
