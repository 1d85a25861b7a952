"""Pack 10M, 50M and 100M tokens of real text through the ordinary stages, and show their books.

    python benchmarks/data_corpus.py --out TEXT       # once: the text that is installed
    python experiments/pack_100m/pack_100m.py TEXT --root OUTPUTS [--keep FOLDER]

TEXT: a folder of JSON lines. Builds below OUTPUTS/store the corpus (exact duplicates dropped, 200
documents held out), a BPE tokenizer of 49,152 tokens trained on the first file, and the packs; what
is ready is skipped. Then opens the store anew and asks for everything again (all has to be
skipped), hashes every row, and compares the packs. FOLDER gets the ledgers, result.json and
table.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from cpt_residual.config.corpora import LocalCorpus
from cpt_residual.config.filters import ExactDedup, Filters
from cpt_residual.config.packs import Pack, PackSource
from cpt_residual.config.schema import Architecture
from cpt_residual.core.build import build_node
from cpt_residual.core.graph import Graph
from cpt_residual.core.measure import usable_cores
from cpt_residual.core.run_record import library_versions
from cpt_residual.core.stage import RunContext, no_progress
from cpt_residual.core.store import Store
from cpt_residual.data.documents.file_names import DOCUMENTS_FILE, LEDGER_FILE
from cpt_residual.data.packing.pack_format import PackView, open_pack, row_hashes
from cpt_residual.data.packing.rows import PADDING
from cpt_residual.data.readers.files import resolve_files
from cpt_residual.errors import ArtifactError, CptResidualError
from cpt_residual.stages.corpus import Corpus
from cpt_residual.stages.init import Init
from cpt_residual.stages.inputs import CorpusInput
from cpt_residual.stages.pack import PackStage

BUDGETS = (10_000_000, 50_000_000, 100_000_000)
VOCAB_SIZE = 49_152
SEQUENCE_LENGTH = 4096
HELDOUT_DOCUMENTS = 200
SEED = 0
MIB = 1 << 20


@dataclass(frozen=True)
class Built:
    """The store after everything was asked for: the nodes in order, which of them were skipped,
    and the seconds that all took together."""

    store: Store
    graph: Graph
    skipped: dict[str, bool]
    seconds: float

    def folder(self, node: str) -> Path:
        return self.store.path_of(self.graph[node])


def stages(store: Store, text: Path, *, budgets: Sequence[int], vocab_size: int) -> list[PackStage]:
    """One pack a budget, from the same documents and the same tokenizer."""
    source = CorpusInput(_corpus(store, "text", text, filters=True), DOCUMENTS_FILE)
    first = resolve_files([str(text)])[0]
    sample = CorpusInput(_corpus(store, "sample", first, filters=False), DOCUMENTS_FILE)
    architecture = Architecture(
        vocab_size=vocab_size,
        hidden_size=8,
        num_layers=1,
        num_heads=1,
        num_key_value_heads=1,
        intermediate_size=8,
        max_position_embeddings=SEQUENCE_LENGTH,
    )
    tokenizer = Init("tokenizer", architecture, sample, SEED)
    return [
        PackStage(
            key=_name(budget),
            pack=Pack(
                tokenizer="tokenizer",
                sequence_length=SEQUENCE_LENGTH,
                token_budget=budget,
                sources=[PackSource(corpus="text")],
                repeat=True,
            ),
            tokenizer=tokenizer,
            template=None,
            sources=(source,),
            seed=SEED,
            available_cores=usable_cores(),
        )
        for budget in budgets
    ]


def _corpus(store: Store, key: str, files: Path, *, filters: bool) -> Corpus:
    corpus = LocalCorpus(
        kind="local",
        files=[str(files)],
        heldout_documents=HELDOUT_DOCUMENTS if filters else 0,
        filters=Filters(exact_dedup=ExactDedup()) if filters else Filters(),
    )
    hashes = {str(path): store.hash_cache.sha256(path) for path in resolve_files(corpus.files)}
    return Corpus(key, corpus, hashes, SEED)


def build(root: Path, text: Path, *, budgets: Sequence[int], vocab_size: int) -> Built:
    """Everything, in order; what is ready is skipped. A store of its own each time."""
    store = Store(root / "store")
    graph = Graph.of(stages(store, text, budgets=budgets, vocab_size=vocab_size))
    skipped: dict[str, bool] = {}
    started = time.monotonic()
    for node in graph.nodes:
        ctx = RunContext(run_dir=root, threads=node.stage.resources().cores, progress=no_progress)
        outcome = build_node(store, graph, node, ctx)
        skipped[node.stage.node] = outcome.skipped
        how = "ready, skipped" if outcome.skipped else "built"
        print(f"{outcome.seconds:8.1f} s  {node.stage.node:14} {how}", flush=True)
    return Built(store, graph, skipped, time.monotonic() - started)


def examined(first: Built, again: Built, *, budgets: Sequence[int]) -> dict[str, Any]:
    """What the packs say of themselves, what their rows say, and whether they nest."""
    packs = [open_pack(first.folder(f"pack:{_name(budget)}")) for budget in budgets]
    for pack in packs:
        _check_books(pack)
    corpus = json.loads((first.folder("corpus:text") / LEDGER_FILE).read_text())
    corpus.pop("files")
    return {
        "corpus": corpus,
        "packs": {
            _name(budget): _pack_facts(first, pack)
            for budget, pack in zip(budgets, packs, strict=True)
        },
        "nesting": [_nesting(small, large) for small, large in pairwise(packs)],
        "rows_match_their_hashes": True,  # _check_books raises otherwise
        "asked_again": {
            "all_skipped": all(again.skipped.values()),
            "seconds": round(again.seconds, 2),
        },
        "cores": usable_cores(),
        "libraries": library_versions(),
    }


def _check_books(pack: PackView) -> None:
    """ArtifactError unless the rows are those that were hashed when they were written, and every
    token that was read is in the pack, cut or left over."""
    if row_hashes(pack, [len(pack)])[len(pack)] != pack.ledger.rows_sha256:
        raise ArtifactError(f"the rows of {pack.path} are not those that were written")
    for source in pack.ledger.sources:
        found = source.tokens + source.tokens_cut + source.tokens_left_over
        if found != source.tokens_read or pack.ledger.tokens != pack.ledger.token_budget:
            raise ArtifactError(
                f"the books of {pack.path} do not balance",
                problems=[f"{source.corpus}: {source.tokens_read} read, {found} accounted for"],
            )


def _pack_facts(built: Built, pack: PackView) -> dict[str, Any]:
    ledger = pack.ledger
    receipt = built.store.receipt(built.graph[f"pack:{_name(ledger.token_budget)}"])
    assert receipt is not None, "an artifact that was just read has a receipt"
    facts = ledger.model_dump(mode="json", exclude={"marks", "phases"})
    num_bytes = sum(path.stat().st_size for path in pack.path.glob("*.npy"))
    return {
        **facts,
        "bytes": num_bytes,
        "seconds": receipt.seconds,
        "tokens_per_second": ledger.tokens / receipt.seconds,
        "peak_bytes": receipt.peak_rss_bytes,
        "peak_bytes_of_a_child": receipt.peak_rss_bytes_child,
    }


def _nesting(small: PackView, large: PackView) -> dict[str, Any]:
    """Whether a training on `large` begins with exactly the tokens of `small`: the hash over all
    rows of `small` but the last, in both, and the last one token by token without its padding."""
    num_rows = len(small) - 1
    ours, theirs = (row_hashes(pack, [num_rows])[num_rows] for pack in (small, large))
    real = (np.asarray(small.flags[num_rows]) & PADDING) == 0
    same_last = all(
        (np.asarray(mine[num_rows])[real] == np.asarray(other[num_rows])[real]).all()
        for mine, other in ((small.ids, large.ids), (small.flags, large.flags))
    )
    return {
        "small": _name(small.ledger.token_budget),
        "large": _name(large.ledger.token_budget),
        "rows": num_rows,
        "sha256_in_small": ours,
        "sha256_in_large": theirs,
        "is_beginning": same_last and ours == theirs,
    }


def table(result: dict[str, Any]) -> str:
    """The same for people."""
    rows = ["tokens", "num_rows", "padding", "loss_tokens"]
    of_source = ["documents", "passes", "eos_tokens", "continuations", "tokens_cut"]
    packs = result["packs"]
    lines = [f"| |{'|'.join(packs)}|", f"|---|{'---:|' * len(packs)}"]
    lines += [_line(row, [pack[row] for pack in packs.values()]) for row in rows]
    lines += [_line(row, [pack["sources"][0][row] for pack in packs.values()]) for row in of_source]
    lines += [
        _line("seconds of the stage", [f"{pack['seconds']:.1f}" for pack in packs.values()]),
        _line(
            "tokens per second", [f"{pack['tokens_per_second']:,.0f}" for pack in packs.values()]
        ),
        _line("MiB on disk", [f"{pack['bytes'] / MIB:,.0f}" for pack in packs.values()]),
        _line("sha256 of the rows", [f"`{p['rows_sha256'][:16]}`" for p in packs.values()]),
        "",
    ]
    for found in result["nesting"]:
        ours, theirs = found["sha256_in_small"][:16], found["sha256_in_large"][:16]
        word = "is" if found["is_beginning"] else "IS NOT"
        lines.append(
            f"* {found['small']} {word} the beginning of {found['large']}: sha256 of the first"
            f" {found['rows']:,} rows `{ours}` and `{theirs}`, the last row token by token."
        )
    corpus, again = result["corpus"], result["asked_again"]
    dropped = sum(each["documents_in"] - each["documents_out"] for each in corpus["passes"])
    lines.append(
        f"* The corpus: {corpus['documents_read']:,} documents read, {dropped:,} dropped as copies,"
        f" {corpus['heldout_documents']:,} held out, {corpus['documents']:,} to train on with"
        f" {corpus['characters']:,} characters."
    )
    word = "was skipped" if again["all_skipped"] else "WAS NOT skipped"
    lines.append(f"* Asked for again, everything {word}, in {again['seconds']:.1f} s.")
    return "\n".join(lines) + "\n"


def _line(name: str, values: Sequence[object]) -> str:
    shown = [f"{value:,}" if isinstance(value, int) else str(value) for value in values]
    return f"|{name.replace('_', ' ')}|{'|'.join(shown)}|"


def _name(budget: int) -> str:
    return f"{budget // 1_000_000}M" if budget % 1_000_000 == 0 else f"{budget}"


def _keep(folder: Path, built: Built, result: dict[str, Any], *, budgets: Sequence[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for budget in budgets:
        name = _name(budget)
        ledger = built.folder(f"pack:{name}") / "pack.json"
        shutil.copyfile(ledger, folder / f"pack_{name}.json")
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "table.md").write_text(table(result))


def main() -> None:
    arguments = _parser().parse_args()
    budgets, vocab_size = sorted(arguments.budgets), arguments.vocab_size
    text, root = arguments.text.absolute(), arguments.root.absolute()
    try:
        first = build(root, text, budgets=budgets, vocab_size=vocab_size)
        print("once more, with the store opened anew")
        again = build(root, text, budgets=budgets, vocab_size=vocab_size)
        result = examined(first, again, budgets=budgets)
    except CptResidualError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print("\n" + table(result))
    if arguments.keep:
        _keep(arguments.keep, first, result, budgets=budgets)
    nested = all(found["is_beginning"] for found in result["nesting"])
    if not (nested and result["asked_again"]["all_skipped"]):
        sys.exit("the packs do not nest, or were not skipped")


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("text", type=Path, help="a folder of JSON lines")
    add("--root", type=Path, required=True, help="where the store lies")
    add("--keep", type=Path, help="copy ledgers, result and table to this folder")
    add("--budgets", type=int, nargs="+", default=BUDGETS, help="tokens of each pack")
    add("--vocab-size", type=int, default=VOCAB_SIZE, help=f"of the tokenizer ({VOCAB_SIZE})")
    return parser


if __name__ == "__main__":
    main()
