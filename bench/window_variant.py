"""A `llama` GGUF rewritten as a `hysparse` one whose sparse layers are left with their window alone.

Layers of `full_layers` keep full attention; every other one becomes a sliding layer (the last w positions, no first block, no selection).
Weights are the same bytes; only the rows of attn_q and attn_k are reordered, because `llama` files hold them interleaved and `hysparse`
rotates halves (docs/gguf.md). This is the "window only" of SPEC 5: what oracle mode would be without the oracle.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

__all__ = ["make_window_variant"]


def halves_order(rows: NDArray[Any], n_head: int) -> NDArray[Any]:
    """Rows (2i, 2i+1) of each head to (i, i + d/2); rows are whole quantised rows, so nothing is requantised."""
    n_rows, n_bytes = rows.shape
    return np.ascontiguousarray(rows.reshape(n_head, n_rows // n_head // 2, 2, n_bytes).swapaxes(1, 2)).reshape(n_rows, n_bytes)


def make_window_variant(source: Path, target: Path, full_layers: Sequence[int], window: int) -> Path:
    """Write `target` (a temporary name, then renamed) and return it."""
    reader = gguf.GGUFReader(source)
    arch = reader.fields["general.architecture"].contents()
    if arch != "llama":
        raise ValueError(f"{source}: general.architecture is {arch!r}; expected 'llama'")
    value = {key.removeprefix("llama."): field.contents() for key, field in reader.fields.items() if key.startswith("llama.")}
    n_layer, n_head, n_head_kv = int(value["block_count"]), int(value["attention.head_count"]), int(value["attention.head_count_kv"])
    head_dim = int(value["embedding_length"]) // n_head
    temporary = target.with_name(target.name + ".tmp")
    writer = gguf.GGUFWriter(temporary, "hysparse")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "llama.attention.head_count_kv"):
            continue
        sub = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key.replace("llama.", "hysparse.", 1), field.contents(), field.types[0], sub_type=sub)
    full = set(full_layers)
    writer.add_array("hysparse.attention.head_count_kv", [n_head_kv] * n_layer)
    writer.add_uint32("hysparse.attention.key_length", head_dim)
    writer.add_uint32("hysparse.attention.value_length", head_dim)
    writer.add_array("hysparse.attention.kv_source", [il if il in full else -1 for il in range(n_layer)])
    writer.add_array("hysparse.attention.selection_source", [-1] * n_layer)
    writer.add_array("hysparse.attention.local", [0 if il in full else 1 for il in range(n_layer)])
    writer.add_uint32("hysparse.attention.sliding_window", window)
    for tensor in reader.tensors:
        data = tensor.data
        if tensor.name.endswith((".attn_q.weight", ".attn_k.weight")):
            data = halves_order(data, n_head if ".attn_q." in tensor.name else n_head_kv)
        writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(temporary, target)
    return target
