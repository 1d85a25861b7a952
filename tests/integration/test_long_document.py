"""A document of any length is packed in bounded memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.commands import REPOSITORY, run_code

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.tiny_tokenizer import tiny_tokenizer
from cpt_residual.data.documents.parsing import document_line
from cpt_residual.data.packing.build import DocumentSource, PackPlan, build_pack
from cpt_residual.modeling.tokenizer import text_encoder

place = Path(sys.argv[2])
source = DocumentSource("long", place / "doc.jsonl", 1.0, text_encoder(tiny_tokenizer()))
plan = PackPlan(1024, 5_000_000, repeat=False, seed=0, bos_id=None, eos_id=0, pad_id=1,
                tokenizer_map_hash="x")
build_pack(place / "pack", [source], plan, progress=lambda *_: None)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_one_document_of_50_megabytes_takes_less_than_a_gigabyte(tmp_path: Path) -> None:
    words = "The harbour of the old town is not far from the gate, they said in 1987. "
    line = b'{"text": "' + words.encode() * (50_000_000 // len(words)) + b'"}\n'
    (tmp_path / "doc.jsonl").write_bytes(line)
    done = run_code(SCRIPT, str(REPOSITORY / "tests"), str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1 << 20, "KiB at most"
