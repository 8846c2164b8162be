"""Writes the seed corpus of the fuzz target: `python seed_corpus.py DIR`. Deterministic; under 200 KB in all."""

from __future__ import annotations

import sys
from pathlib import Path

from hostile_reader import reader_cases
from make_hostile import PACK, STR, U32, small, tiny_model

SEEDS = ["alignment-huge", "array-wraps", "product-wraps-to-small", "overlap", "key-repeated", "strings-past-end", "type-removed-4"]


def seeds() -> dict[str, bytes]:
    every_type = small()
    for kind in PACK:
        every_type.set(f"test.type{kind}", kind, 1).set_array(f"test.array{kind}", kind, [0, 1])
    every_type.set_array("test.strings", STR, ["", "a", "é"]).set("general.alignment", U32, 64)
    every_type.alignment = 64
    out = {
        "small.gguf": small().build(),
        "types.gguf": every_type.build(),
        "hysparse.gguf": tiny_model(tokenizer=False).build(),
        "moe.gguf": tiny_model(moe=True, tokenizer=False).build(),
        "llama.gguf": tiny_model("llama", tokenizer=False).build(),
        "qwen2.gguf": tiny_model("qwen2", tokenizer=False).build(),
    }
    hostile = {c.name: c for c in reader_cases()}
    return out | {f"bad-{name}.gguf": hostile[name].files["model.gguf"] for name in SEEDS}


if __name__ == "__main__":
    for name, data in seeds().items():
        Path(sys.argv[1], name).write_bytes(data)
