from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

from cpt_residual.core.files import append_line, copy_files


def test_the_copy_of_a_write_protected_tree_can_be_written(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "figures").mkdir(parents=True)
    for name in ("report.md", "manifest.json", "figures/a.png"):
        (source / name).write_text(name)
        (source / name).chmod(0o444)
    for folder in (source / "figures", source):
        folder.chmod(0o555)
    copy_files(source, target, leave_out=("manifest.json",))
    copied = {path.relative_to(target).as_posix(): path for path in target.rglob("*")}
    assert set(copied) == {"figures", "figures/a.png", "report.md"}
    assert all(path.stat().st_mode & stat.S_IWUSR for path in (target, *copied.values()))
    assert copied["figures/a.png"].read_text() == "figures/a.png"
    copied["report.md"].write_text("old")
    copy_files(source, target)
    assert copied["report.md"].read_text() == "report.md", "it replaces what is there"
    for folder in (source, source / "figures"):
        folder.chmod(0o755)


def test_a_line_is_appended_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert append_line(path, "first")
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from cpt_residual.core.files import append_line\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9, 9))\n"
        "print(append_line(Path(sys.argv[1]), 'second'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
    assert path.read_text() == "first\n", "three bytes of the second line had room"
    assert append_line(path, "third")
    assert path.read_text() == "first\nthird\n"


def test_a_line_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    assert not append_line(Path("/dev/full"), "x")
    assert not append_line(tmp_path / "missing" / "log", "x")
