"""Runs one command and reports what it and all its processes took: the stopwatch of `data.py`.

    python -I -S data_probe.py REPORT LOG COMMAND...

REPORT gets JSON: wall seconds from start to end, exit status, and what was seen, four times a
second, of the command's whole session: `cpu_seconds` of all its processes, and the largest memory
in bytes: `peak_bytes` (proportional set size: resident pages, each counted once however many
processes share it) and `anonymous_bytes` (of that, what is no page of a file). LOG gets its output.
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

_INTERVAL_SECONDS = 0.25
_TICKS = os.sysconf("SC_CLK_TCK")


class Watch:
    """What the processes of a session took so far."""

    def __init__(self, session: int) -> None:
        self._session = session
        self._cpu_seconds: dict[str, float] = {}
        self.peak_bytes = self.anonymous_bytes = 0

    @property
    def cpu_seconds(self) -> float:
        return sum(self._cpu_seconds.values())

    def until(self, done: threading.Event) -> None:
        """Look until `done`."""
        while not done.wait(_INTERVAL_SECONDS):
            memory = [0, 0]
            for folder in self._processes():
                for number, value in enumerate(_memory(folder)):
                    memory[number] += value
            self.peak_bytes = max(self.peak_bytes, memory[0])
            self.anonymous_bytes = max(self.anonymous_bytes, memory[1])

    def _processes(self) -> Iterator[Path]:
        """The /proc folders of the session's processes."""
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == self._session:
                self._cpu_seconds[folder.name] = (int(fields[11]) + int(fields[12])) / _TICKS
                yield folder


def _memory(process: Path) -> tuple[int, int]:
    """(resident, of that anonymous) bytes; nothing for a process that has just ended."""
    found = {"Pss:": 0, "Pss_Anon:": 0}
    try:
        lines = (process / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0, 0
    for words in map(str.split, lines):
        if words[0] in found:
            found[words[0]] = int(words[1]) * 1024
    return found["Pss:"], found["Pss_Anon:"]


def main() -> None:
    report, log, command = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
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
        seen = Watch(child.pid)
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
        "peak_bytes": seen.peak_bytes,
        "anonymous_bytes": seen.anonymous_bytes,
    }
    report.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
