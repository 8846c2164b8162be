"""Tiny random checkpoints of stock architectures, written by transformers' own save_pretrained, and transformers' logits for them."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from reference.tiny import VOCAB_SIZE, write_tokenizer

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "bos_token_id": 0, "eos_token_id": 2, "attn_implementation": "eager"}
_LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64}
_MIMO: dict[str, Any] = {
    "num_hidden_layers": 5, "num_attention_heads": 8, "head_dim": 96, "v_head_dim": 64, "sliding_window": 25,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    "mlp_layer_types": ["dense"] + ["sparse"] * 4, "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
    "rope_parameters": {kind: {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 0.334}
                        for kind, theta in (("full_attention", 50000.0), ("sliding_attention", 1000.0))}}

STOCK: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama_tied": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama_bias": ("Llama", {"attention_bias": True, "num_key_value_heads": 4}),
    "llama3_rope": ("Llama", {"rope_parameters": _LLAMA3_ROPE, "head_dim": 32}),
    "qwen2": ("Qwen2", {"head_dim": None, "num_attention_heads": 2, "num_key_value_heads": 1}),
    "qwen3": ("Qwen3", {"head_dim": 64}),
    "mimo_v2_flash": ("MiMoV2Flash", _MIMO),
    "mimo_v2_flash_groups": ("MiMoV2Flash", {**_MIMO, "n_routed_experts": 16, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2,
                                             "routed_scaling_factor": 2.0}),
}


def _randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights of the same scale as tiny.random_weights instead of transformers' 0.02, so that attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {**dict(model.named_parameters()), **{n: b for n, b in model.named_buffers() if n.endswith("e_score_correction_bias")}}
    for name, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("norm.weight"):
            value = 1 + 0.1 * noise
        elif name.endswith("sinks"):
            value = 3 + noise
        elif tensor.dim() == 1:  # biases
            value = 0.2 * noise
        elif "embed_tokens" in name:
            value = noise
        else:
            gain = 1.4 if "q_proj" in name or "k_proj" in name else 1.0
            value = gain * noise * tensor.shape[-1] ** -0.5
        tensor.data.copy_(value)


def make_stock(path: str | Path, name: str, *, seed: int = 1, **overrides: Any) -> Path:
    """Write the random checkpoint STOCK[name] (with `overrides` of its config) and a tokenizer to the folder `path`; return the folder."""
    import transformers

    family, options = STOCK[name]
    values = {**_COMMON, **options, **overrides}
    config = getattr(transformers, family + "Config")(**{key: value for key, value in values.items() if value is not None})
    model = getattr(transformers, family + "ForCausalLM")(config).float()
    _randomise(model, seed)
    folder = Path(path)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def transformers_logits(checkpoint: Path, tokens: Sequence[int]) -> torch.Tensor:
    """Float32 logits [n_tokens, vocab_size] of a checkpoint folder, from transformers with eager attention."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    model.train(False)
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([list(tokens)])).logits[0]
    return logits
