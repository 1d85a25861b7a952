"""Seeded mutations of the files of a model: of JSON values, of safetensors headers, of bytes."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path

from pydantic import JsonValue

Mutation = Callable[[bytes, random.Random], bytes]

_ODD_VALUES: tuple[JsonValue, ...] = (
    None,
    True,
    False,
    -1,
    0,
    1,
    3,
    2**31,
    2**60,
    10**400,
    1.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "auto",
    "text",
    "12",
    "\ud800",
    "a\0b",
    "../x",
    "~x",
    [],
    [1],
    [None],
    [-1, 2],
    {},
    {"a": None},
    [[[[]]]],
)
_CONFIG_KEYS = (
    "architectures",
    "auto_map",
    "dtype",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "model_type",
    "num_key_value_heads",
    "pad_token_id",
    "quantization_config",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "text_config",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "vocab_size",
)
_QUANTISED = (
    {"quant_method": "fp8"},
    {"load_in_4bit": True, "quant_method": "bitsandbytes"},
    {"quant_method": ["gptq"], "bits": "four"},
)
_DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "U8", "BOOL", "Q9", "", None, 3)


def mutate_bytes(raw: bytes, random_: random.Random) -> bytes:
    """Bytes flipped, cut, doubled, put in; or another encoding of the whole."""
    at, stop = sorted(random_.choices(range(len(raw) + 1), k=2))
    flipped = bytearray(raw)
    for place in random_.choices(range(len(raw)), k=random_.randint(1, 4)) if raw else ():
        flipped[place] = random_.randrange(256)
    odd = random_.choice([b"", b"null", b"[]", b"\xff\xfe{}", b"\xef\xbb\xbf" + raw, b"\0" * 8])
    return random_.choice(
        [
            bytes(flipped),
            raw[:at],
            raw[:at] + raw[stop:],
            raw[:stop] + raw[at:],
            raw[:at] + random_.randbytes(random_.randint(1, 9)) + raw[at:],
            odd,
            raw[:at] + b"[" * 200_000 + raw[at:],
            raw.decode("latin-1").encode("utf-16"),
        ]
    )


def mutate_config(raw: bytes, random_: random.Random) -> bytes:
    """config.json with values that belong elsewhere, fields left out or said twice."""
    if random_.random() < 0.15:
        return mutate_bytes(raw, random_)
    fields = json.loads(raw)
    for _ in range(random_.randint(1, 2)):
        key = random_.choice(sorted({*fields, *_CONFIG_KEYS}))
        kind = random_.randrange(8)
        if kind == 0:
            fields.pop(key, None)
        elif kind == 1:
            fields["quantization_config"] = random_.choice(_QUANTISED)
        elif kind == 2 and isinstance(fields.get(key), dict):
            inner = random_.choice(sorted(fields[key]))
            fields[key] = {**fields[key], inner: random_.choice(_ODD_VALUES)}
        elif kind == 3:
            return json.dumps(fields)[:-1].encode() + b', "' + key.encode() + b'": 1}'
        else:
            fields[key] = random_.choice(_ODD_VALUES)
    return json.dumps(fields).encode()


def mutate_index(raw: bytes, random_: random.Random) -> bytes:
    """model.safetensors.index.json with other places for its tensors."""
    if random_.random() < 0.2:
        return mutate_bytes(raw, random_)
    fields = json.loads(raw)
    tensors, kind = fields["weight_map"], random_.randrange(7)
    name = random_.choice(sorted(tensors))
    if kind == 0:
        fields[random_.choice(["metadata", "weight_map"])] = random_.choice(_ODD_VALUES)
    elif kind == 1:
        del tensors[name]
    elif kind == 2:
        tensors[random_.choice(["extra", "", "\ud800", f"{name}.x"])] = tensors[name]
    elif kind == 3:
        tensors[name] = random_.choice([*sorted(tensors.values()), *_ODD_VALUES])
    elif kind == 4:
        tensors[name] = random_.choice(
            ["../base/config.json", "/etc/passwd", "x" * 300, ".", "a/b"]
        )
    elif kind == 5:
        tensors[name] = "config.json"
    else:
        fields["metadata"] = {"total_size": random_.choice(_ODD_VALUES), "x": None}
    return json.dumps(fields).encode()


def mutate_shard(raw: bytes, random_: random.Random) -> bytes:
    """A safetensors file with another header, length or end."""
    size = int.from_bytes(raw[:8], "little")
    header, data = raw[8 : 8 + size], raw[8 + size :]
    kind = random_.randrange(8)
    if kind == 0:
        length = random_.choice([0, 1, size - 1, size + 1, 10**8, 2**31, 2**60, 2**64 - 1])
        return struct.pack("<Q", length) + raw[8:]
    if kind == 1:
        return raw[: random_.randrange(len(raw))] + random_.choice([b"", b"\0" * 8])
    if kind == 2:
        header = mutate_bytes(header, random_)
    else:
        fields = json.loads(header)
        _mutate_header(fields, random_)
        header = json.dumps(fields).encode()
    return struct.pack("<Q", len(header)) + header + data


def _mutate_header(fields: dict[str, JsonValue], random_: random.Random) -> None:
    name = random_.choice(sorted(set(fields) - {"__metadata__"}))
    entry = fields[name]
    assert isinstance(entry, dict)
    kind = random_.randrange(9)
    if kind == 0:
        fields["__metadata__"] = random_.choice(_ODD_VALUES)
    elif kind == 1:
        fields["__metadata__"] = {"format": random_.choice(_ODD_VALUES)}
    elif kind == 2:
        del fields[name]
    elif kind == 3:
        fields[random_.choice(["", "extra", "\ud800", "a\0b", "a/b", name.upper()])] = fields.pop(
            name
        )
    elif kind == 4:
        entry["dtype"] = random_.choice(_DTYPES)
    elif kind == 5:
        entry["shape"] = random_.choice([[], [0], [0, 8], [2**62, 4], [10**400], [8, 1], "8", None])
    elif kind == 6:
        entry["data_offsets"] = random_.choice([[0, 0], [8, 0], [0], [-2, 2], [0, 2**63], None])
    elif kind == 7:
        fields[name] = random_.choice(_ODD_VALUES)
    else:
        span = entry["data_offsets"]
        assert isinstance(span, list)
        fields["empty"] = {"dtype": "BF16", "shape": [0, 4], "data_offsets": [*span[:1], *span[:1]]}


def mutated(path: Path, mutation: Mutation, seed: int) -> bytes:
    """The file's bytes after one mutation that changes them."""
    raw, random_ = path.read_bytes(), random.Random(seed)
    while True:
        found = mutation(raw, random_)
        if found != raw:
            return found
