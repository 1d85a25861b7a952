"""The door of the commands: what the output takes, how the process ends, what is never printed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from rich.table import Table

from cpt_residual.errors import ConfigError, WorkerError
from cpt_residual.launch.console import BuildConsole, UserConsole, paragraph
from cpt_residual.launch.door import PIPE_CLOSED, enter, say, say_error
from cpt_residual.launch.stopping import TerminatedError
from cpt_residual.launch.visible import visible, visible_lines

EVIL = "x\x1b[31mred\x07\x9b2J\u202e\udcff"
SHOWN = "x\u241b[31mred\\u0007\\u009b2J\\u202e\\udcff"
SUBMIT = Path(__file__).parents[3] / "slurm" / "submit.py"
TYPERS = ["-m", "cpt_residual.cli", "--help"]
"""Printed by typer, which ends the process itself."""
ALL = [
    ["-m", "cpt_residual.plan", "+experiment=tiny"],
    ["-m", "cpt_residual.plan", "--help"],
    ["-m", "cpt_residual.run", "--help"],
    ["-m", "cpt_residual.row", "--help"],
    TYPERS,
    ["-m", "cpt_residual.cli", "gc"],
    [str(SUBMIT), "--help"],
]
full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


def start(
    command: Sequence[str], folder: Path, *, out: int, errors: int = subprocess.PIPE, **more: str
) -> subprocess.Popen[bytes]:
    (folder / "outputs" / "store").mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONUNBUFFERED": "", **more}
    return subprocess.Popen(
        [sys.executable, *command], cwd=folder, stdout=out, stderr=errors, env=environment
    )


def _closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_a_closed_pipe_ends_any_command_quietly(command: Sequence[str], tmp_path: Path) -> None:
    out = _closed_pipe()
    process = start(command, tmp_path, out=out)
    os.close(out)
    _, errors = process.communicate(timeout=60)
    assert errors == b""
    assert process.returncode == (1 if command == TYPERS else PIPE_CLOSED)


@full
@pytest.mark.parametrize("buffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_an_output_that_is_full_is_told_in_one_line(
    command: Sequence[str], tmp_path: Path, buffered: str
) -> None:
    if buffered and command not in (ALL[0], ALL[1]):
        pytest.skip("one command of each kind is enough")
    out = os.open("/dev/full", os.O_WRONLY)
    process = start(command, tmp_path, out=out, PYTHONUNBUFFERED=buffered)
    os.close(out)
    _, errors = process.communicate(timeout=60)
    assert process.returncode not in (0, 120)
    assert errors.decode().count("No space left on device") == 1
    assert b"Traceback" not in errors


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_the_characters_gets_others(tmp_path: Path, encoding: str) -> None:
    process = start(ALL[0], tmp_path, out=subprocess.PIPE, PYTHONIOENCODING=encoding)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")
    assert b"`- " in out
    assert out.isascii()


@pytest.mark.parametrize("closed", [(1,), (0, 1, 2)])
def test_closed_streams_stop_nothing(tmp_path: Path, closed: tuple[int, ...]) -> None:
    closing = " ".join(f"{number}>&-" for number in closed)
    line = f'exec "$@" {closing}'
    done = subprocess.run(
        ["sh", "-c", line, "sh", sys.executable, *ALL[0]],
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert (b"store:" in done.stdout) == (1 not in closed)


@pytest.mark.parametrize("columns", ["0", "10"])
def test_a_narrow_terminal_cuts_nothing(tmp_path: Path, columns: str) -> None:
    process = start(ALL[0], tmp_path, out=subprocess.PIPE, COLUMNS=columns)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")
    assert f"store: {tmp_path}/outputs/store" in out.decode()


def test_a_folder_that_is_not_utf8(tmp_path: Path) -> None:
    """It is planned; where its name had to be written into a file, that is refused in words."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    process = start(ALL[0], folder, out=subprocess.PIPE)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")
    assert b"caf\\udce9" in out
    process = start([*ALL[0], "--out", "plan.json"], folder, out=subprocess.PIPE)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert b"not UTF-8" in errors
    assert b"Traceback" not in errors
    assert [path.name for path in folder.iterdir()] == ["outputs"]


@pytest.mark.parametrize(
    ("problem", "status", "words"),
    [
        (ConfigError("bad", problems=[EVIL], remedy="Fix it."), 2, f"  {SHOWN}\nFix it."),
        (WorkerError(EVIL), 1, f"WorkerError: {SHOWN}"),
        (FileNotFoundError(2, "No such file", EVIL), 2, f"{SHOWN}: No such file"),
        (KeyboardInterrupt(), 130, "interrupted: go on"),
        (TerminatedError(), 143, "terminated: go on"),
        (OSError(28, "No space left on device"), 2, "what was published stays"),
        (SystemExit(2), 2, ""),
        (SystemExit("no such thing"), 2, "no such thing"),
        (SystemExit(None), 0, ""),
    ],
)
def test_what_ends_a_command_in_one_line(
    capsys: pytest.CaptureFixture[str], problem: BaseException, status: int, words: str
) -> None:
    def work() -> int:
        raise problem

    assert enter(work, resumes="go on") == status
    assert words in capsys.readouterr().err


@full
def test_an_interrupt_has_its_status_also_where_stderr_is_full() -> None:
    code = "import sys; from cpt_residual.launch.door import enter; sys.exit(enter(lambda: "
    code += "(_ for _ in ()).throw(KeyboardInterrupt), resumes='go on'))"
    with Path("/dev/full").open("wb") as errors:
        done = subprocess.run([sys.executable, "-c", code], stderr=errors, timeout=60, check=False)
    assert done.returncode == 130


def test_defects_are_not_hidden() -> None:
    def work() -> int:
        raise KeyError("a defect")

    with pytest.raises(KeyError):
        enter(work, resumes="")
    with pytest.raises(UnicodeEncodeError):
        enter(lambda: len("\N{SNOWMAN}".encode("latin-1")), resumes="")


def test_a_broken_pipe_of_another_kind_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise BrokenPipeError(32, "Broken pipe")

    assert enter(work, resumes="") == 2
    assert "Broken pipe" in capsys.readouterr().err


NAMES = ["residual:family:", "[red]x[/red]", "[link=x]y", ":smile: [1, 2]", EVIL]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str], name: str) -> None:
    def table(console: UserConsole) -> None:
        found = Table(box=None)
        found.add_column("n", no_wrap=True)
        found.add_row(name)
        console.print(found)

    def bars(console: UserConsole) -> None:
        with BuildConsole(console, total_stages=1) as build:
            build.started(name)
            build.progressed(name, 1, 2, "tokens")
            build.finished(name, name)

    ways: list[Callable[[UserConsole], None]] = [
        lambda console: console.print(name),
        lambda console: console.print_text(name),
        lambda console: paragraph(console, name),
        table,
        bars,
    ]
    for way in ways:
        enter(lambda way=way: way(UserConsole()) or 0, resumes="")
        out = capsys.readouterr().out
        assert visible(name) in out
        assert "\x1b" not in out
    say(name)
    say_error(ConfigError(name))
    assert capsys.readouterr() == (visible(name) + "\n", f"ConfigError: {visible(name)}\n")


def test_lines_stay_lines() -> None:
    assert visible_lines("a\nb\x1b\n") == "a\nb\u241b\n"
    assert visible("a\nb") == "a\u21b5b"
    assert visible("na\u00efve \u4e2d \U0001f468\u200d\U0001f469") == (
        "na\u00efve \u4e2d \U0001f468\u200d\U0001f469"
    )
