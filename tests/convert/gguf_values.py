"""Reads GGUF files back for the tests: keys, and tensors dequantised to float32 in PyTorch's (row-major) shape."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize


class Values:
    """One GGUF file, or all shards of a split one."""

    def __init__(self, *paths: Path) -> None:
        self.keys: dict[str, Any] = {}
        self.tensors: dict[str, np.ndarray] = {}
        self.types: dict[str, str] = {}
        for path in paths:
            reader = GGUFReader(path)
            for name, f in reader.fields.items():
                self.keys.setdefault(name, f.contents())
            for t in reader.tensors:
                assert t.name not in self.tensors
                shape = tuple(int(n) for n in reversed(t.shape))
                self.tensors[t.name] = dequantize(t.data, t.tensor_type).astype(np.float32).reshape(shape)
                self.types[t.name] = t.tensor_type.name

    def arch_key(self, name: str) -> Any:
        """A key below the architecture's prefix; None if absent."""
        return self.keys.get(f"{self.keys['general.architecture']}.{name}")


def interleaved(w: np.ndarray, n_head: int) -> np.ndarray:
    """Row i of a head's first half beside row i of its second half, written out as a loop: what llama.cpp's `llama` wants."""
    d = w.shape[0] // n_head
    order = [h * d + half * d // 2 + i for h in range(n_head) for i in range(d // 2) for half in (0, 1)]
    return w[order]
