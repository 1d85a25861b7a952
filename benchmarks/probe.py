"""Runs one command and reports what it took: the stopwatch of the benchmarks.

    python -I -S probe.py one|all REPORT LOG COMMAND...

A small process of its own, because Linux counts the memory of the process that starts a program
into that program's peak. REPORT gets JSON: wall seconds, CPU seconds, exit status, and memory:

* one: `peak_bytes` is the kernel's ru_maxrss (the largest of the command's processes, pages of
  mapped files included), `anonymous_bytes` the largest RssAnon of the command itself.
* all: of the command's whole session, looked up four times a second, each page counted once
  however many processes share it: resident (`peak_bytes`), and of that no pages of files.

LOG gets the command's output.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


class Watch:
    """What the processes of a session took so far."""

    def __init__(self, leader: int, *, everybody: bool) -> None:
        self._leader, self._everybody = leader, everybody
        self._cpu_seconds: dict[str, float] = {}
        self.peak_bytes = self.anonymous_bytes = 0

    @property
    def cpu_seconds(self) -> float:
        return sum(self._cpu_seconds.values())

    def until(self, done: threading.Event) -> None:
        """Look until `done`."""
        while not done.wait(0.25 if self._everybody else 0.05):
            if self._everybody:
                found = [_bytes(each / "smaps_rollup") for each in self._processes()]
            else:
                found = [_bytes(Path(f"/proc/{self._leader}/status"))]
            peak = sum(each.get("Pss:", 0) for each in found)
            anonymous = sum(each.get("Pss_Anon:", each.get("RssAnon:", 0)) for each in found)
            self.peak_bytes = max(self.peak_bytes, peak)
            self.anonymous_bytes = max(self.anonymous_bytes, anonymous)

    def _processes(self) -> Iterator[Path]:
        """The /proc folders of the session's processes."""
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == self._leader:
                self._cpu_seconds[folder.name] = (int(fields[11]) + int(fields[12])) / _TICKS
                yield folder


def _bytes(path: Path) -> dict[str, int]:
    """Numbers in kB of a file of /proc, as bytes; none of a process that has just ended."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) * 1024 for words in lines if words[-1] == "kB"}


def main() -> None:
    everybody = sys.argv[1] == "all"
    report, log, command = Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]
    done = threading.Event()
    with log.open("wb") as output:
        started = time.perf_counter()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        seen = Watch(child.pid, everybody=everybody)
        watcher = threading.Thread(target=seen.until, args=(done,), daemon=True)
        watcher.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except KeyboardInterrupt:
            os.killpg(child.pid, signal.SIGKILL)
            raise
        seconds = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    done.set()
    watcher.join()
    result = {
        "exit_status": child.returncode,
        "seconds": seconds,
        "cpu_seconds": max(seen.cpu_seconds, usage.ru_utime + usage.ru_stime),
        "peak_bytes": seen.peak_bytes if everybody else usage.ru_maxrss * 1024,
        "anonymous_bytes": seen.anonymous_bytes,
    }
    report.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
