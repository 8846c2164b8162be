"""Rotary position embedding: NEOX halves, the first `rotary_dim` of each head; default, linear, yarn (arXiv 2309.00071) and llama3 scaling.

Conventions of transformers' ROPE_INIT_FUNCTIONS, against which test_reference.py checks every type.
"""
from __future__ import annotations

import math

import torch

from reference.config import RopeConfig


def _yarn_inv_freq(rope: RopeConfig, inv_freq: torch.Tensor, dim: int) -> torch.Tensor:
    """Blend of unscaled (fast) and scaled (slow) frequencies, by how often a dimension turns within the original context."""

    def turns_to_dim(turns: float) -> float:
        return dim * math.log(rope.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = turns_to_dim(rope.beta_fast), turns_to_dim(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
    return inv_freq / rope.factor * ramp + inv_freq * (1 - ramp)


def _yarn_magnitude(rope: RopeConfig) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)


def _llama3_inv_freq(rope: RopeConfig, inv_freq: torch.Tensor) -> torch.Tensor:
    """Wavelengths beyond the original context are stretched by `factor`, short ones are kept, those between are interpolated."""
    wavelength = 2 * math.pi / inv_freq
    smooth = (rope.original_max_position_embeddings / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = smooth.clamp(0, 1)
    return (1 - smooth) * inv_freq / rope.factor + smooth * inv_freq


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> tuple[torch.Tensor, float]:
    """(inv_freq float64 [rotary_dim / 2], magnitude): rotated halves are also multiplied by magnitude (1 but for yarn)."""
    dim = int(head_dim * rope.partial_rotary_factor)
    inv_freq = rope.theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if rope.rope_type == "default":
        return inv_freq, 1.0
    if rope.rope_type == "linear":
        return inv_freq / rope.factor, 1.0
    if rope.rope_type == "yarn":
        return _yarn_inv_freq(rope, inv_freq, dim), _yarn_magnitude(rope)
    if rope.rope_type == "llama3":
        return _llama3_inv_freq(rope, inv_freq), 1.0
    raise ValueError(f"rope_type is {rope.rope_type!r}, expected default, linear, yarn or llama3")


def apply_rope(x: torch.Tensor, positions: torch.Tensor, rope: RopeConfig) -> torch.Tensor:
    """Rotate x [n_tokens, n_head, head_dim] by its tokens' positions [n_tokens]; dimensions beyond rotary_dim stay as they are."""
    inv_freq, magnitude = inverse_frequencies(rope, x.shape[-1])
    angles = positions.double()[:, None] * inv_freq
    cos = (angles.cos() * magnitude).to(x.dtype)[:, None, :]
    sin = (angles.sin() * magnitude).to(x.dtype)[:, None, :]
    half = inv_freq.numel()
    a, b, rest = x[..., :half], x[..., half:2 * half], x[..., 2 * half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)
