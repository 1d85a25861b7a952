"""The support models are what they claim: releases that the installed transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from transformers import AutoModelForCausalLM

from support.hub_family import write_hub_family
from support.hub_releases import RELEASES


@pytest.mark.parametrize("name", sorted(RELEASES))
def test_a_release_loads_whole_and_leaves_unstated_what_its_descendant_states(
    name: str, tmp_path: Path
) -> None:
    family = write_hub_family(tmp_path, name)
    for folder in family:
        _, report = cast("Any", AutoModelForCausalLM).from_pretrained(
            folder, trust_remote_code=False, output_loading_info=True
        )
        assert not report["missing_keys"], folder
        assert not report["mismatched_keys"], folder
        has_unread = RELEASES[name].unread and folder != family.target
        assert has_unread or not report["unexpected_keys"], folder
    base, target = (json.loads((f / "config.json").read_text()) for f in (family[0], family[2]))
    assert not base.keys() & {"rope_parameters", "dtype"}
    assert target.keys() - base.keys()
