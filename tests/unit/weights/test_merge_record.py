from __future__ import annotations

import json
from pathlib import Path

import pytest

from cpt_residual.errors import ArtifactError
from cpt_residual.weights.merge.merge_record import read_merge_record


def test_a_method_that_is_not_installed_is_named(tmp_path: Path) -> None:
    fields = {"name": "m", "recipe": {"method": {"kind": "spiral"}}}
    (tmp_path / "merge.json").write_text(json.dumps(fields))
    with pytest.raises(ArtifactError, match="the method spiral, which is not installed") as found:
        read_merge_record(tmp_path)
    assert "Install the package" in str(found.value)
