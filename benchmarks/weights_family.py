"""A model family made on the spot for `weights.py`: base, instruct and base_cpt.

    python benchmarks/weights_family.py DIR [--layers N] [--small]

Shapes and files of Llama 3.2 1B (1.24B parameters, tied embeddings, bf16) in three shards per
model. Numbers of realistic size: base from N(0, 0.02) (norms around 1), instruct = base +
N(0, 1e-3), base_cpt = base + N(0, 5e-4), each rounded to bf16; counter-based random numbers, so the
bytes do not depend on threads. The tokenizer is a byte-level BPE with the real number of tokens and
merges, none of them learnt from text. Memory is some megabytes per thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from cpt_residual.core.disk import check_free_space
from cpt_residual.weights.io.checkpoint import TensorEntry
from cpt_residual.weights.io.writer import layout

NUM_SHARDS = 3
MODELS = ("base", "instruct", "base_cpt")
VERSION = 2  # raise it when the same size would give other files
_BLOCK = 1 << 20  # elements
_NOISE = {"instruct": 1e-3, "base_cpt": 5e-4}
_NAMED = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
)
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

Bits = npt.NDArray[np.uint16]
Numbers = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Size:
    """Shape of the models; the last `num_special` of `vocab` tokens are special."""

    hidden: int = 2048
    layers: int = 16
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 64
    intermediate: int = 8192
    vocab: int = 128256
    num_special: int = 256

    @property
    def tensors(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes in the order of the shards; lm_head is tied and not stored."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm": (self.hidden,),
            "self_attn.q_proj": (q, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, q),
            "post_attention_layernorm": (self.hidden,),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }
        return [
            ("model.embed_tokens.weight", (self.vocab, self.hidden)),
            *(
                (f"model.layers.{number}.{name}.weight", shape)
                for number in range(self.layers)
                for name, shape in layer.items()
            ),
            ("model.norm.weight", (self.hidden,)),
        ]

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(shape) for _, shape in self.tensors)

    @property
    def num_bytes(self) -> int:
        """Weights of one model."""
        return 2 * self.num_parameters

    def special_id(self, token: str) -> int:
        return self.vocab - self.num_special + _NAMED.index(token)


ONE_B = Size()
SMALL = Size(hidden=256, layers=2, heads=4, kv_heads=2, intermediate=1024, vocab=4096)


@dataclass(frozen=True)
class Family:
    """The three model folders of one size."""

    size: Size
    base: Path
    instruct: Path
    base_cpt: Path

    @property
    def shards(self) -> list[str]:
        return sorted(path.name for path in self.base.glob("*.safetensors"))


def make(size: Size, root: Path, *, say: Callable[[str], None] = print) -> Family:
    """The family of this size below `root`; one that is complete is used again."""
    folder = root / f"family-hidden{size.hidden}-layers{size.layers}"
    marker = folder / "complete.json"
    wanted = {"version": VERSION, **asdict(size)}
    if not (marker.is_file() and json.loads(marker.read_text()) == wanted):
        if folder.exists():
            shutil.rmtree(folder)
        check_free_space(root, 3 * size.num_bytes + (1 << 30))
        say(f"making a family of {size.num_parameters:,} parameters in {folder}")
        _make(size, folder)
        marker.write_text(json.dumps(wanted) + "\n")
    base, instruct, base_cpt = (folder / name for name in MODELS)
    return Family(size=size, base=base, instruct=instruct, base_cpt=base_cpt)


def _make(size: Size, folder: Path) -> None:
    backend = _tokenizer(size)
    for name in MODELS:
        (folder / name).mkdir(parents=True)
        _write_side_files(size, folder / name, backend, chat=name == "instruct")
    shards = _shards(size)
    _write_index(size, shards, folder)
    files: dict[tuple[str, str], int] = {}
    entries: list[TensorEntry] = []
    try:
        for shard, tensors in shards.items():
            header, laid = layout(
                shard, [(name, "BF16", at) for name, at in tensors], {"format": "pt"}
            )
            entries.extend(laid)
            for model in MODELS:
                flags = os.O_WRONLY | os.O_CREAT
                file = os.open(folder / model / shard, flags, 0o644)
                files[model, shard] = file
                os.posix_fallocate(file, 0, laid[-1].offset + laid[-1].num_bytes)
                os.pwrite(file, header, 0)
        _write_weights(entries, files)
        for file in files.values():
            os.fsync(file)
    finally:
        for file in files.values():
            os.close(file)


def _write_weights(entries: list[TensorEntry], files: Mapping[tuple[str, str], int]) -> None:
    def write(task: tuple[int, int]) -> None:
        number, start = task
        entry = entries[number]
        stop = min(start + _BLOCK, entry.num_elements)
        mean = 1.0 if "norm" in entry.name else 0.0
        base = round_bf16(_normal("base", number, start, stop - start) * np.float32(0.02) + mean)
        blocks = {"base": base}
        for model, scale in _NOISE.items():
            noise = _normal(model, number, start, stop - start) * np.float32(scale)
            blocks[model] = round_bf16(widened(base) + noise)
        for model, block in blocks.items():
            raw = memoryview(block).cast("B")
            offset = entry.offset + 2 * start
            if os.pwrite(files[model, entry.shard], raw, offset) != raw.nbytes:
                raise OSError(f"{entry.shard}: a short write")

    tasks = [
        (number, start)
        for number, entry in enumerate(entries)
        for start in range(0, entry.num_elements, _BLOCK)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(write, tasks):
            pass


def round_bf16(values: Numbers) -> Bits:
    """Finite fp32 values rounded to bf16, to nearest even, as bits."""
    bits = values.astype(np.float32, copy=False).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def widened(bits: Bits) -> Numbers:
    """bf16 bits as fp32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _normal(model: str, tensor: int, start: int, count: int) -> Numbers:
    key = np.array([MODELS.index(model), (tensor << 40) | start], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key))
    return generator.standard_normal(count, dtype=np.float32)


def _shards(size: Size) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    """Tensors in order, cut where each shard has about a third of the bytes."""
    names = [f"model-{n + 1:05d}-of-{NUM_SHARDS:05d}.safetensors" for n in range(NUM_SHARDS)]
    shards: dict[str, list[tuple[str, tuple[int, ...]]]] = {name: [] for name in names}
    done = number = 0
    for name, shape in size.tensors:
        if done * NUM_SHARDS >= size.num_parameters * (number + 1):
            number += 1
        shards[names[number]].append((name, shape))
        done += math.prod(shape)
    return shards


def _write_index(
    size: Size, shards: Mapping[str, list[tuple[str, tuple[int, ...]]]], folder: Path
) -> None:
    weight_map = {name: shard for shard, tensors in shards.items() for name, _ in tensors}
    index = {"metadata": {"total_size": size.num_bytes}, "weight_map": weight_map}
    for model in MODELS:
        _write_json(folder / model / "model.safetensors.index.json", index)


def _tokenizer(size: Size) -> Tokenizer:
    """Byte-level BPE: bytes, then pairs, then triples, until the vocabulary is full."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    num_merges = size.vocab - size.num_special - len(alphabet)
    pairs = list(itertools.product(alphabet, alphabet))
    longer = (("".join(pair), char) for pair, char in itertools.product(pairs, alphabet))
    merges = list(itertools.islice(itertools.chain(pairs, longer), num_merges))
    tokens = [*alphabet, *("".join(merge) for merge in merges)]
    vocab = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in _special(size)])
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        special_tokens=[("<|begin_of_text|>", size.special_id("<|begin_of_text|>"))],
    )
    if backend.get_vocab_size() != size.vocab:
        raise ValueError(f"{backend.get_vocab_size()} tokens instead of {size.vocab}")
    return backend


def _special(size: Size) -> list[str]:
    reserved = [f"<|reserved_special_token_{n}|>" for n in range(3, size.num_special)]
    return [*_NAMED, *reserved][: size.num_special]


def _write_side_files(size: Size, folder: Path, backend: Tokenizer, *, chat: bool) -> None:
    ends = ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"] if chat else ["<|end_of_text|>"]
    ids = [size.special_id(token) for token in ends]
    stops = {
        "bos_token_id": size.special_id("<|begin_of_text|>"),
        "eos_token_id": ids if chat else ids[0],
    }
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        head_dim=size.head_dim,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        max_position_embeddings=131072,
        num_attention_heads=size.heads,
        num_hidden_layers=size.layers,
        num_key_value_heads=size.kv_heads,
        rms_norm_eps=1e-05,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=True,
        dtype="bfloat16",
        vocab_size=size.vocab,
        **stops,
    )
    config.save_pretrained(folder)
    GenerationConfig(do_sample=False, **stops).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=_NAMED[0],
        eos_token=ends[-1],
        model_max_length=131072,
        clean_up_tokenization_spaces=False,
    )
    if chat:
        tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(folder)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=ONE_B.layers)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    size = SMALL if options.small else Size(layers=options.layers)
    print(make(size, options.folder).base.parent)


if __name__ == "__main__":
    main()
