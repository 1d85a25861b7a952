"""Runs one command and reports what it took: the stopwatch of `weights.py`.

    python -I -S weights_probe.py REPORT LOG COMMAND...

A small process of its own, because Linux counts the memory of the process that starts a program
into that program's peak. REPORT gets JSON: wall seconds from start to end, CPU seconds, exit
status, `peak_bytes` (the kernel's ru_maxrss of the command and of the processes it has waited for:
the largest of them, pages of mapped files included) and `anonymous_bytes` (the largest RssAnon of
the command itself, looked up twenty times a second: without mapped files). LOG gets its output.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path


def watch(process_id: int, done: threading.Event, largest: list[int]) -> None:
    """Keeps the largest RssAnon in `largest[0]` (bytes) until `done`."""
    status = Path(f"/proc/{process_id}/status")
    while not done.wait(0.05):
        try:
            lines = status.read_text().splitlines()
        except OSError:
            return
        for line in lines:
            if line.startswith("RssAnon:"):
                largest[0] = max(largest[0], int(line.split()[1]) * 1024)


def main() -> None:
    report, log, command = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    largest, done = [0], threading.Event()
    with log.open("wb") as output:
        started = time.perf_counter()
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        watcher = threading.Thread(target=watch, args=(child.pid, done, largest), daemon=True)
        watcher.start()
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    done.set()
    watcher.join()
    result = {
        "exit_status": child.returncode,
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
        "anonymous_bytes": largest[0],
    }
    report.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
