"""What a caller can tell a family besides the checkpoint."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """qkv_tp_size: tensor-parallel ranks in which a fused qkv_proj is stored (1: plain Q, K, V rows); None: find out or refuse."""

    qkv_tp_size: int | None = None
