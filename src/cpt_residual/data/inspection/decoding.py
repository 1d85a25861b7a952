"""The tokenizer that a pack was made with, for showing its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cpt_residual.data.packing.pack_ledger import PackLedger
from cpt_residual.errors import CompatibilityError
from cpt_residual.modeling.token_side import token_map_hash
from cpt_residual.modeling.tokenizer import backend_of, load_tokenizer, special_tokens_of


class TokenDecoder:
    """Ids to text with the tokenizer of a model directory."""

    def __init__(self, directory: Path) -> None:
        tokenizer = load_tokenizer(directory)
        self.directory = directory
        self.map_hash = token_map_hash(tokenizer)
        self.num_tokens = len(tokenizer)
        self.specials: Mapping[int, str] = special_tokens_of(tokenizer)
        self._backend = backend_of(tokenizer)

    @classmethod
    def of_pack(cls, directory: Path, ledger: PackLedger) -> TokenDecoder:
        """Raises CompatibilityError when `directory` has another token map than the pack."""
        decoder = cls(directory)
        if decoder.map_hash != ledger.tokenizer_map_hash:
            raise CompatibilityError(
                f"{directory} is not the tokenizer of this pack",
                problems=[
                    f"its token map has sha256 {decoder.map_hash}",
                    f"the pack was made with   {ledger.tokenizer_map_hash}",
                ],
                remedy="Its ids would be shown as other words. Give --tokenizer the model directory"
                " that the pack was made from, or leave it out to see the ids.",
            )
        return decoder

    def text(self, ids: Sequence[int]) -> str:
        """As text, special tokens included."""
        return self._backend.decode(list(ids), skip_special_tokens=False)
