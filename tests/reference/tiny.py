"""Makes tiny random HySparse checkpoints in Hugging Face's format: config.json, safetensors, tokenizer.json, tokenizer_config.json.

    make_checkpoint(folder, **overrides)      overrides of BASE_CONFIG's entries (config.json's own names)
    make_preset(folder, "sinks_all")          one of presets.PRESETS

Weights are scaled so that attention is far from uniform, gates far from 1 and sinks take a visible share: an implementation that
leaves one of them out cannot pass by accident. From the command line, inside tests/: python -m reference.tiny PRESET FOLDER
"""
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from reference.config import LayerConfig, ModelConfig, parse_config
from reference.presets import FULL, PRESETS, SLIDING, SPARSE

VOCAB_SIZE = 320
BASE_CONFIG: dict[str, Any] = {
    "model_type": "hysparse", "architectures": ["HySparseForCausalLM"], "hidden_act": "silu", "torch_dtype": "float32",
    "vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 7,
    "num_attention_heads": 4, "num_key_value_heads": 2, "swa_num_key_value_heads": 2, "head_dim": 32, "v_head_dim": 32,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "attention_bias": False, "qk_norm": False,
    "attention_value_scale": None,
    "layer_types": [FULL, SPARSE, SPARSE, FULL, SLIDING, SPARSE, FULL],
    "sliding_window": 24, "sparse_block_size": 16, "sparse_topk_tokens": 64, "attention_gate": "head",
    "add_full_attention_sink_bias": False, "add_sparse_attention_sink_bias": False, "add_swa_attention_sink_bias": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "bos_token_id": 0, "eos_token_id": 2,
}
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
                 "{% endfor %}"
                 "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
SENTENCES = [
    "The full layer attends to everything and tells which blocks of the context mattered.",
    "The sparse layers after it attend only to those blocks, in the cache of the full layer.",
    "Once upon a time there was a small model that could read a very long story.",
    "A window of the last tokens keeps what is near; the selection keeps what is important.",
    "Numbers such as 0, 12, 24, 36 and 48 name the layers of the larger model.",
    "def attend(query, keys, values): return softmax(query @ keys.T) @ values",
]


def write_tokenizer(folder: Path) -> int:
    """Write tokenizer.json (byte-level BPE trained on SENTENCES) and tokenizer_config.json; return the number of tokens (<= VOCAB_SIZE)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, special_tokens=SPECIAL_TOKENS, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL_TOKENS[0], "eos_token": SPECIAL_TOKENS[2],
        "unk_token": SPECIAL_TOKENS[0], "chat_template": CHAT_TEMPLATE, "model_max_length": 4096}, indent=2))
    return int(tokenizer.get_vocab_size())


class _Weights:
    """Collects random tensors by name; `fan_in`-scaled matrices keep activations of order one."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.tensors: dict[str, torch.Tensor] = {}

    def normal(self, name: str, *shape: int, mean: float = 0.0, std: float) -> None:
        self.tensors[name] = mean + std * torch.randn(*shape, generator=self.generator)

    def linear(self, name: str, n_out: int, n_in: int, gain: float = 1.0) -> None:
        self.normal(name + ".weight", n_out, n_in, std=gain * n_in**-0.5)

    def norm(self, name: str, n: int, mean: float = 1.0) -> None:
        self.normal(name + ".weight", n, mean=mean, std=0.1)


def _attention(w: _Weights, prefix: str, config: ModelConfig, layer: LayerConfig) -> None:
    n_embd, n_q, n_v = config.hidden_size, layer.n_head * layer.head_dim, layer.n_head * layer.v_head_dim
    rows = {"q_proj": n_q, "k_proj": layer.n_head_kv * layer.head_dim, "v_proj": layer.n_head_kv * layer.v_head_dim}
    for name, n_out in rows.items():
        w.linear(prefix + name, n_out, n_embd, gain=1.0 if name == "v_proj" else 1.4)  # q.k/sqrt(d) has a deviation of about 2
        if config.attention_bias:
            w.normal(f"{prefix}{name}.bias", n_out, std=0.3)
    w.linear(prefix + "o_proj", n_embd, n_v)
    if config.qk_norm:
        w.norm(prefix + "q_norm", layer.head_dim, mean=1.4)
        w.norm(prefix + "k_norm", layer.head_dim, mean=1.4)
    if layer.sinks:
        w.normal(prefix + "sinks", layer.n_head, mean=3.0, std=1.0)
    if layer.sparse_sinks:
        w.normal(prefix + "sparse_sinks", layer.n_head, mean=3.0, std=1.0)
    if layer.gate:
        n_gate = layer.n_head if layer.gate == "head" else n_v
        w.linear(prefix + "sparse_gate_proj", n_gate, n_embd, gain=1.5)
        w.linear(prefix + "swa_gate_proj", n_gate, n_embd, gain=1.5)


def _mlp(w: _Weights, prefix: str, n_embd: int, n_ff: int) -> None:
    w.linear(prefix + "gate_proj", n_ff, n_embd)
    w.linear(prefix + "up_proj", n_ff, n_embd)
    w.linear(prefix + "down_proj", n_embd, n_ff)


def _moe(w: _Weights, prefix: str, config: ModelConfig, packed: bool) -> None:
    moe = config.moe
    assert moe is not None, "an MoE layer needs n_routed_experts"
    n_embd = config.hidden_size
    w.linear(prefix + "gate", moe.n_expert, n_embd, gain=1.5)
    # The correction bias is on the scale of the scores that it corrects: sigmoids, or softmax probabilities.
    w.normal(prefix + "gate.e_score_correction_bias", moe.n_expert, std=0.2 if moe.scoring_func == "sigmoid" else 0.5 / moe.n_expert)
    if packed:
        w.normal(prefix + "experts.gate_up_proj", moe.n_expert, 2 * moe.n_ff, n_embd, std=n_embd**-0.5)
        w.normal(prefix + "experts.down_proj", moe.n_expert, n_embd, moe.n_ff, std=moe.n_ff**-0.5)
    else:
        for e in range(moe.n_expert):
            _mlp(w, f"{prefix}experts.{e}.", n_embd, moe.n_ff)
    if moe.n_shared:
        _mlp(w, prefix + "shared_experts.", n_embd, moe.n_ff * moe.n_shared)


def random_weights(config: ModelConfig, seed: int, packed_experts: bool = False) -> dict[str, torch.Tensor]:
    """Random float32 tensors under the checkpoint names of SPEC 6."""
    w = _Weights(seed)
    tied = config.tie_word_embeddings
    w.normal("model.embed_tokens.weight", config.vocab_size, config.hidden_size, std=2 * config.hidden_size**-0.5 if tied else 1.0)
    for il, layer in enumerate(config.layers):
        prefix = f"model.layers.{il}."
        w.norm(prefix + "input_layernorm", config.hidden_size)
        w.norm(prefix + "post_attention_layernorm", config.hidden_size)
        _attention(w, prefix + "self_attn.", config, layer)
        if layer.moe:
            _moe(w, prefix + "mlp.", config, packed_experts)
        else:
            _mlp(w, prefix + "mlp.", config.hidden_size, config.intermediate_size)
    w.norm("model.norm", config.hidden_size)
    if not tied:
        w.linear("lm_head", config.vocab_size, config.hidden_size, gain=2.0)
    return w.tensors


def write_safetensors(folder: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    """One model.safetensors, or `shards` files with an index, as transformers writes them."""
    metadata = {"format": "pt"}
    if shards == 1:
        save_file(tensors, str(folder / "model.safetensors"), metadata=metadata)
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        save_file(part, str(folder / file), metadata=metadata)
        weight_map.update(dict.fromkeys(part, file))
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def make_checkpoint(path: str | Path, *, seed: int = 1, shards: int = 1, packed_experts: bool = False, **overrides: Any) -> Path:
    """Write a random checkpoint to the folder `path` (made if missing) and return it.

    seed: of the weights. shards: number of safetensors files. packed_experts: experts as [E, 2F, H] and [E, H, F] instead of one by one.
    overrides: entries of config.json; torch_dtype ("float32", "float16", "bfloat16") is also the dtype of the stored tensors.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    config = {**BASE_CONFIG, **overrides}
    tensors = random_weights(parse_config(config), seed, packed_experts)
    dtype = getattr(torch, config["torch_dtype"])
    write_safetensors(folder, {name: t.to(dtype).contiguous() for name, t in tensors.items()}, shards)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    generation = {name: config[name] for name in ("bos_token_id", "eos_token_id")}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    write_tokenizer(folder)
    return folder


def make_preset(path: str | Path, name: str, **overrides: Any) -> Path:
    """make_checkpoint with the overrides of PRESETS[name] and then `overrides`. Two presets also cover sharding and packed experts."""
    layout = {"dense": {"shards": 3}, "moe_groups": {"packed_experts": True, "shards": 2}}.get(name, {})
    return make_checkpoint(path, **{**layout, **PRESETS[name], **overrides})


if __name__ == "__main__":
    print(make_preset(sys.argv[2], sys.argv[1]))
