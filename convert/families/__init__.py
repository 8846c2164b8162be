"""Model families: how a config.json becomes GGUF keys and bound tensors. `family_of` picks one."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..bind import Binder
from ..config import Config
from ..errors import mismatch
from ..keys import KeyValues
from . import hysparse, llama, mimo_v2, qwen
from .options import Options


@dataclass(frozen=True)
class Family:
    """One supported family: its GGUF architecture, the names that config.json gives it, and what builds its keys and tensors."""

    arch: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    build: Callable[[Config, Binder, KeyValues, Options], None]


FAMILIES = (
    Family("hysparse", ("hysparse",), ("HySparseForCausalLM",), hysparse.build),
    Family("llama", ("llama",), ("LlamaForCausalLM",), llama.build),
    Family("qwen2", ("qwen2",), ("Qwen2ForCausalLM",), qwen.build_qwen2),
    Family("qwen3", ("qwen3",), ("Qwen3ForCausalLM",), qwen.build_qwen3),
    Family("mimo2", ("mimo_v2_flash", "mimo_v2"), ("MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM"), mimo_v2.build),
)


def family_of(config: Config) -> Family:
    """The family of a config.json, by model_type and architectures (when both are given, both must fit)."""
    model_type, architectures = config.data.get("model_type"), config.data.get("architectures") or []
    if config.data.get("enable_hy_sparse_attention"):  # PaddleFleet's configs have no model_type of their own
        return FAMILIES[0]
    if not isinstance(architectures, list):
        raise mismatch(config.place("architectures"), repr(architectures), "a list")
    supported = ", ".join(t for family in FAMILIES for t in family.model_types)
    for family in FAMILIES:
        if model_type in family.model_types or (model_type is None and any(a in family.architectures for a in architectures)):
            if architectures and not any(a in family.architectures for a in architectures):
                raise mismatch(config.place("architectures"), repr(architectures), " or ".join(family.architectures))
            return family
    found = repr(model_type) if model_type is not None else f"nothing (architectures: {architectures})"
    raise mismatch(config.place("model_type"), found, f"one of {supported}")
