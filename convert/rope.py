"""RoPE parameters of a layer kind: transformers 5's `rope_parameters` (one dict, or one per layer type) and the older
`rope_theta` / `rope_scaling` / `partial_rotary_factor`, to GGUF keys and frequency factors."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import keys
from .config import Config
from .dtypes import F32
from .errors import mismatch

LAYER_TYPES = ("full_attention", "sparse_attention", "sliding_attention")
_KNOWN = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings", "attention_factor",
          "mscale", "mscale_all_dim", "beta_fast", "beta_slow", "truncate", "low_freq_factor", "high_freq_factor", "finetuned",
          "mrope_section", "mrope_interleaved"}


@dataclass(frozen=True)
class Rope:
    """n_rot: rotated dimensions of a head. attn_factor: over YaRN's own 1 + 0.1 ln(factor), which the runtime applies."""

    n_rot: int
    theta: float
    kind: str = "default"  # default | linear | yarn | llama3
    factor: float = 1.0
    original_context: int = 0
    attn_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def set_keys(self, kv: keys.KeyValues, suffix: str = "") -> None:
        """Write the keys of one layer kind; suffix "" (full), "_sparse" or "_swa"."""
        kv.set(keys.rope_dimension_count(suffix), self.n_rot)
        kv.set(keys.rope_freq_base(suffix), self.theta)
        if self.kind in ("linear", "yarn"):
            kv.set(keys.rope_scaling("type", suffix), self.kind)
            kv.set(keys.rope_scaling("factor", suffix), self.factor)
        if self.kind == "yarn":
            kv.set(keys.rope_scaling("original_context_length", suffix), self.original_context)
            kv.set(keys.rope_scaling("yarn_beta_fast", suffix), self.beta_fast)
            kv.set(keys.rope_scaling("yarn_beta_slow", suffix), self.beta_slow)
            if abs(self.attn_factor - 1.0) > 1e-9:
                kv.set(keys.rope_scaling("attn_factor", suffix), self.attn_factor)

    def freq_factors(self) -> F32 | None:
        """Divisors of the frequencies [n_rot / 2] for Llama 3's scaling, as llama.cpp stores them (`rope_freqs`); None for other kinds.

        Wavelengths up to original/high_freq_factor stay, those beyond original/low_freq_factor are divided by `factor`, a linear blend
        of the two frequencies between (Llama 3.1's published scheme).
        """
        if self.kind != "llama3":
            return None
        freq = self.theta ** -(np.arange(0, self.n_rot, 2, dtype=np.float64) / self.n_rot)
        turns = self.original_context * freq / (2 * math.pi)  # full turns within the original context
        blend = np.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0.0, 1.0)
        return (1.0 / ((1.0 - blend) / self.factor + blend)).astype(np.float32)


def _merge(config: Config, layer_type: str) -> tuple[str, dict[str, Any]]:
    """(field name for messages, flat parameters) of a layer type. A type without an entry of its own uses the full layers'."""
    name, value = config.raw("rope_parameters", "rope_scaling", default={})
    if not isinstance(value, dict):
        raise mismatch(config.place(name), repr(value)[:80], "an object")
    if any(kind in value for kind in LAYER_TYPES):
        kind = layer_type if isinstance(value.get(layer_type), dict) else "full_attention"
        if not isinstance(value.get(kind), dict):
            raise mismatch(config.place(f"{name}.{kind}"), repr(value.get(kind)), "an object with rope_theta")
        name, value = f"{name}.{kind}", value[kind]
    return name, dict(value)


def _yarn_attn_factor(p: Config, factor: float) -> float:
    """transformers' attention factor (given, or from mscale and mscale_all_dim) over the default 1 + 0.1 ln(factor)."""
    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if p.has("attention_factor"):
        return p.number("attention_factor") / mscale(1.0)
    if p.data.get("mscale") and p.data.get("mscale_all_dim"):
        return mscale(p.number("mscale")) / mscale(p.number("mscale_all_dim")) / mscale(1.0)
    return 1.0


def rope_of(config: Config, layer_type: str, head_dim: int, *, default_theta: float = 10000.0, default_partial: float = 1.0,
            theta_field: str = "rope_theta") -> Rope:
    """The checked RoPE of a layer type with heads of `head_dim`. Unknown scaling types and fields are refused.

    theta_field: the top-level field that older configs have for this layer type (MiMo's hub config: swa_rope_theta).
    """
    name, values = _merge(config, layer_type)
    p = Config(values, f"{config.where}: {name}")
    for field in values:
        if field not in _KNOWN:
            raise mismatch(p.place(field), repr(values[field])[:80], "only fields known for rope types default, linear, yarn and llama3")
    p.forbid("mrope_section", (), "multimodal RoPE is not supported")
    p.forbid("mrope_interleaved", (False,), "multimodal RoPE is not supported")
    kind = p.choice("rope_type", "type", options=("default", "linear", "yarn", "llama3"), default="default")
    if theta_field != "rope_theta" and config.has(theta_field) and "." not in name:
        theta = config.number(theta_field)  # beats a flat rope_parameters dict, which is the full layers' then
    else:
        theta = p.number("rope_theta", default=config.number("rope_theta", default=default_theta))
    partial = p.number("partial_rotary_factor", default=config.number("partial_rotary_factor", default=default_partial))
    n_rot = int(head_dim * partial)
    if not 0 < n_rot <= head_dim or n_rot % 2:
        raise mismatch(p.place("partial_rotary_factor"), f"{partial:g} ({n_rot} of {head_dim} dimensions)",
                       "an even number of dimensions, at most the head's")
    if kind == "default":
        return Rope(n_rot, theta)
    factor = p.number("factor")
    if kind == "linear":
        return Rope(n_rot, theta, kind, factor)
    trained = config.integer("original_max_position_embeddings", "max_position_embeddings")
    original = p.integer("original_max_position_embeddings", default=trained)
    if kind == "yarn":
        p.forbid("truncate", (True,), "an untruncated YaRN range is not supported")
        return Rope(n_rot, theta, kind, factor, original, _yarn_attn_factor(p, factor),
                    p.number("beta_fast", default=32.0), p.number("beta_slow", default=1.0))
    low, high = p.number("low_freq_factor"), p.number("high_freq_factor")
    if high <= low:
        raise mismatch(p.place("high_freq_factor"), high, f"more than low_freq_factor ({low:g})")
    return Rope(n_rot, theta, kind, factor, original, low_freq_factor=low, high_freq_factor=high)
