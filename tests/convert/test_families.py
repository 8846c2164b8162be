"""Llama, Qwen2, Qwen3 and MiMo-V2: transformers' own random checkpoints, hub field names, FP8 blocks, fused and packed projections."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_values import Values, interleaved

from pyhysparse.convert import ConvertError, convert

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file, save_file  # noqa: E402

COMMON = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
          "num_key_value_heads": 2, "max_position_embeddings": 512}
MIMO = {**COMMON, "num_key_value_heads": 1, "head_dim": 48, "v_head_dim": 32, "sliding_window": 17, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 32, "layer_types": ["full_attention", "sliding_attention", "full_attention"]}


def save_model(folder: Path, name: str, **fields: Any) -> Path:
    """A random model of transformers' class NAMEForCausalLM, biases and norms random too."""
    config = getattr(transformers, f"{name}Config")(**fields)
    torch.manual_seed(3)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in (*model.parameters(), *(b for n, b in model.named_buffers() if "correction" in n)):
            parameter.normal_(0.5, 0.3)
    model.save_pretrained(folder)
    return folder


def converted(folder: Path, outtype: str = "f32", **options: Any) -> Values:
    out = folder / "out.gguf"
    convert(folder, out, outtype, **options)
    return Values(out)


def stored(folder: Path) -> dict[str, np.ndarray]:
    return {name: w.float().numpy() for name, w in load_file(str(folder / "model.safetensors")).items()}


def check_dense(g: Values, w: dict[str, np.ndarray], interleave: dict[str, int]) -> int:
    """All per-layer tensors of a dense model; returns how many there were."""
    names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
             "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
             "ffn_down": "mlp.down_proj"}
    seen = 0
    for name, got in g.tensors.items():
        if not name.startswith("blk."):
            continue
        _, il, stem, kind = name.split(".")
        want = w[f"model.layers.{il}.{names[stem]}.{kind}"]
        if stem in interleave:
            want = interleaved(want, interleave[stem])
        assert np.array_equal(got, want), name
        seen += 1
    return seen


def test_llama(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}
    save_model(tmp_path, "Llama", **COMMON, attention_bias=True, tie_word_embeddings=False, rope_parameters=rope)
    g, w = converted(tmp_path), stored(tmp_path)
    assert check_dense(g, w, {"attn_q": 4, "attn_k": 2}) == 3 * 13
    assert np.array_equal(g.tensors["output.weight"], w["lm_head.weight"])
    assert [g.arch_key(k) for k in ("attention.head_count", "attention.head_count_kv", "rope.dimension_count", "rope.freq_base",
                                    "vocab_size", "context_length")] == [4, 2, 16, 10000, 96, 512]
    # transformers' own frequencies are the unscaled ones divided by the factors
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    plain = 10000.0 ** -(np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(plain / g.tensors["rope_freqs.weight"], model.model.rotary_emb.inv_freq.numpy(), rtol=1e-6)
    assert len(set(g.tensors["rope_freqs.weight"].tolist())) > 2


def test_old_style_rope_scaling(tmp_path: Path) -> None:
    """rope_theta and rope_scaling at the top of config.json, as before transformers 5, with the key `type`."""
    save_model(tmp_path, "Llama", **COMMON, tie_word_embeddings=True)
    data = json.loads((tmp_path / "config.json").read_text())
    data.pop("rope_parameters", None)
    data.update({"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 2.0}})
    (tmp_path / "config.json").write_text(json.dumps(data))
    g = converted(tmp_path)
    assert (g.arch_key("rope.freq_base"), g.arch_key("rope.scaling.type"), g.arch_key("rope.scaling.factor")) == (5000, "linear", 2)
    assert "output.weight" not in g.tensors


def test_qwen2(tmp_path: Path) -> None:
    save_model(tmp_path, "Qwen2", **COMMON, tie_word_embeddings=True)
    g, w = converted(tmp_path), stored(tmp_path)
    assert check_dense(g, w, {}) == 3 * 12 and "blk.2.attn_v.bias" in g.tensors and "output.weight" not in g.tensors
    assert g.keys["general.architecture"] == "qwen2"


def test_qwen3_yarn(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128}
    save_model(tmp_path, "Qwen3", **COMMON, head_dim=32, tie_word_embeddings=False, rope_parameters=rope)
    g, w = converted(tmp_path), stored(tmp_path)
    assert check_dense(g, w, {}) == 3 * 11
    assert [g.arch_key(k) for k in ("attention.key_length", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor",
                                    "rope.scaling.original_context_length")] == [32, 32, "yarn", 4, 128]
    assert g.arch_key("rope.scaling.attn_factor") is None


def check_mimo(g: Values, w: dict[str, np.ndarray]) -> None:
    for il in range(3):
        moe = il > 0
        if moe:
            for kind in ("gate", "up", "down"):
                want = np.stack([w[f"model.layers.{il}.mlp.experts.{e}.{kind}_proj.weight"] for e in range(4)])
                assert np.array_equal(g.tensors[f"blk.{il}.ffn_{kind}_exps.weight"], want)
            assert np.array_equal(g.tensors[f"blk.{il}.ffn_gate_inp.weight"], w[f"model.layers.{il}.mlp.gate.weight"])
            assert np.array_equal(g.tensors[f"blk.{il}.exp_probs_b.bias"], w[f"model.layers.{il}.mlp.gate.e_score_correction_bias"])
        for name in ("q", "k", "v"):
            assert np.array_equal(g.tensors[f"blk.{il}.attn_{name}.weight"], w[f"model.layers.{il}.self_attn.{name}_proj.weight"])
    assert np.array_equal(g.tensors["blk.1.attn_sinks.weight"], w["model.layers.1.self_attn.attention_sink_bias"])
    assert "blk.0.attn_sinks.weight" not in g.tensors and g.keys["general.architecture"] == "mimo2"
    assert g.arch_key("attention.head_count_kv") == [1, 2, 1] and g.arch_key("attention.sliding_window_pattern") == [0, 1, 0]
    assert [g.arch_key(k) for k in ("attention.key_length", "attention.value_length", "attention.sliding_window", "rope.dimension_count",
                                    "rope.freq_base", "rope.freq_base_swa", "expert_count", "expert_gating_func")] == \
        [48, 32, 17, 16, 5e6, 1e4, 4, 2]
    assert g.arch_key("attention.value_scale") == pytest.approx(0.707)


def test_mimo_v2_flash(tmp_path: Path) -> None:
    save_model(tmp_path, "MiMoV2Flash", **MIMO)
    check_mimo(converted(tmp_path), stored(tmp_path))


HUB = {"model_type": "mimo_v2_flash", "architectures": ["MiMoV2FlashForCausalLM"], "vocab_size": 96, "hidden_size": 64,
       "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 48,
       "v_head_dim": 32, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 48, "swa_v_head_dim": 32,
       "max_position_embeddings": 512, "layernorm_epsilon": 1e-05, "hybrid_layer_pattern": [0, 1, 0], "hybrid_block_size": None,
       "moe_layer_freq": [0, 1, 1], "sliding_window": 16, "sliding_window_size": 16, "attention_chunk_size": 16, "rope_theta": 5000000,
       "swa_rope_theta": 10000, "partial_rotary_factor": 0.334, "add_swa_attention_sink_bias": True,
       "add_full_attention_sink_bias": False, "attention_value_scale": 0.707, "n_routed_experts": 4, "num_experts_per_tok": 2,
       "moe_intermediate_size": 32, "n_shared_experts": None, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "n_group": 1,
       "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": None, "tie_word_embeddings": False, "attention_bias": False,
       "hidden_act": "silu"}


def hub_checkpoint(folder: Path, **fields: Any) -> dict[str, Any]:
    """A MiMo-V2 checkpoint with the hub's config; returns the tensors (torch)."""
    save_model(folder, "MiMoV2Flash", **MIMO)
    (folder / "config.json").write_text(json.dumps({**HUB, **fields}))
    return load_file(str(folder / "model.safetensors"))


def test_mimo_hub_config(tmp_path: Path) -> None:
    """The hub's own fields give what transformers' do; its window of 16 previous tokens is 17 keys. MTP tensors are left out by name."""
    tensors = hub_checkpoint(tmp_path)
    w = stored(tmp_path)
    save_file({**tensors, "model.mtp.layers.0.enorm.weight": torch.ones(64)}, str(tmp_path / "model.safetensors"))
    report = convert(tmp_path, tmp_path / "out.gguf", "f32")
    assert report.ignored == ["model.mtp.layers.0.enorm.weight"] and any("prediction" in text for text in report.warnings)
    check_mimo(Values(tmp_path / "out.gguf"), w)
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in HUB.items() if k != "sliding_window_size"}))
    assert converted(tmp_path).arch_key("attention.sliding_window") == 17


def to_fp8(w: Any, block: tuple[int, int]) -> tuple[Any, Any, np.ndarray]:
    """(FP8 weight, block scales, what they stand for) of a matrix."""
    rows, cols = w.shape
    scale = torch.empty(-(-rows // block[0]), -(-cols // block[1]))
    full = torch.empty_like(w)
    q = torch.empty(rows, cols, dtype=torch.float8_e4m3fn)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            at = (slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1]))
            scale[i, j] = w[at].abs().max() / 448
            q[at] = (w[at] / scale[i, j]).to(torch.float8_e4m3fn)
            full[at] = q[at].float() * scale[i, j]
    return q, scale, full.numpy()


FP8 = {"quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [24, 40]}}


def test_fp8_blocks(tmp_path: Path) -> None:
    """Blocks that divide neither rows nor columns."""
    tensors = hub_checkpoint(tmp_path, **FP8)
    want: dict[str, np.ndarray] = {}
    for name in [n for n in tensors if n.endswith("_proj.weight") and "o_proj" not in n]:
        tensors[name], tensors[name + "_scale_inv"], want[name] = to_fp8(tensors[name], (24, 40))
    save_file(tensors, str(tmp_path / "model.safetensors"))
    g = converted(tmp_path)
    assert len(want) > 20
    check_mimo(g, {**stored(tmp_path), **want})
    report = convert(tmp_path, tmp_path / "auto.gguf")
    assert report.outtype == "bf16"
    del tensors["model.layers.1.self_attn.k_proj.weight_scale_inv"]
    save_file(tensors, str(tmp_path / "model.safetensors"))
    with pytest.raises(ConvertError, match=r"layers\.1\.self_attn\.k_proj\.weight is F8_E4M3: missing its scales"):
        converted(tmp_path)


def test_fp8_packed_experts(tmp_path: Path) -> None:
    """Packed experts [E, 2F, H] in FP8 have scales [E, rows, columns]; F = 32 is no multiple of 24, so `up` starts inside a block."""
    tensors = hub_checkpoint(tmp_path, **FP8)
    want: dict[str, np.ndarray] = {}
    for il in (1, 2):
        prefix = f"model.layers.{il}.mlp.experts."
        parts: dict[str, list[Any]] = {"gate_up_proj": [], "down_proj": []}
        for e in range(4):
            one = {kind: tensors.pop(f"{prefix}{e}.{kind}_proj.weight") for kind in ("gate", "up", "down")}
            gate_up, down = to_fp8(torch.cat([one["gate"], one["up"]]), (24, 40)), to_fp8(one["down"], (24, 40))
            parts["gate_up_proj"].append(gate_up)
            parts["down_proj"].append(down)
            for kind, value in (("gate", gate_up[2][:32]), ("up", gate_up[2][32:]), ("down", down[2])):
                want[f"{prefix}{e}.{kind}_proj.weight"] = value
        for name, quantised in parts.items():
            tensors[prefix + name] = torch.stack([q for q, _, _ in quantised])
            tensors[prefix + name + "_scale_inv"] = torch.stack([scale for _, scale, _ in quantised])
    save_file(tensors, str(tmp_path / "model.safetensors"))
    check_mimo(converted(tmp_path), {**stored(tmp_path), **want})


@pytest.mark.parametrize("tp", [2, 4])
def test_fused_qkv_in_rank_order(tmp_path: Path, tp: int) -> None:
    """V2.5's qkv_proj: each rank's share of Q, K, V in turn, FP8 blocks padded for each rank; the rank count shows in the scale rows."""
    fields = {"num_key_value_heads": 4, "swa_num_key_value_heads": 4, "model_type": "mimo_v2", "architectures": ["MiMoV2ForCausalLM"],
              "attention_projection_layout": "fused_qkv"}
    quant = {"quantization_config": {**FP8["quantization_config"], "weight_block_size": [40, 40]}}
    save_model(tmp_path, "MiMoV2Flash", **{**MIMO, "num_key_value_heads": 2, "num_attention_heads": 4})
    (tmp_path / "config.json").write_text(json.dumps({**HUB, **quant, **fields}))
    tensors = load_file(str(tmp_path / "model.safetensors"))
    want: dict[str, np.ndarray] = {}
    generator = torch.Generator().manual_seed(5)
    for il in range(3):
        prefix = f"model.layers.{il}.self_attn."
        rows = {"q": 4 * 48, "k": 4 * 48, "v": 4 * 32}
        ranks = []
        split: dict[str, list[np.ndarray]] = {name: [] for name in rows}
        for _ in range(tp):
            part = to_fp8(torch.randn(sum(rows.values()) // tp, 64, generator=generator), (40, 40))
            ranks.append(part)
            lo = 0
            for name, n in rows.items():
                split[name].append(part[2][lo: lo + n // tp])
                lo += n // tp
        for name in rows:
            del tensors[f"{prefix}{name}_proj.weight"]
            want[f"blk.{il}.attn_{name}.weight"] = np.concatenate(split[name])
        tensors[prefix + "qkv_proj.weight"] = torch.cat([q for q, _, _ in ranks])
        tensors[prefix + "qkv_proj.weight_scale_inv"] = torch.cat([scale for _, scale, _ in ranks])
    save_file(tensors, str(tmp_path / "model.safetensors"))
    g = converted(tmp_path)
    for name, w in want.items():
        assert np.array_equal(g.tensors[name], w), name
    for il in range(3):  # without scales nothing tells the order
        del tensors[f"model.layers.{il}.self_attn.qkv_proj.weight_scale_inv"]
        fused = f"model.layers.{il}.self_attn.qkv_proj.weight"
        tensors[fused] = tensors[fused].float()
    save_file(tensors, str(tmp_path / "model.safetensors"))
    with pytest.raises(ConvertError, match="give qkv_tp_size"):
        converted(tmp_path)
    g = converted(tmp_path, qkv_tp_size=tp)
    fused_rows = tensors["model.layers.0.self_attn.qkv_proj.weight"].numpy()
    assert np.array_equal(g.tensors["blk.0.attn_q.weight"][: 192 // tp], fused_rows[: 192 // tp])
    with pytest.raises(ConvertError, match="qkv_tp_size: found 3"):
        converted(tmp_path, qkv_tp_size=3)


def test_tied_head_stored_again(tmp_path: Path) -> None:
    """A copy of the embeddings is listed as ignored; other values contradict the config."""
    save_model(tmp_path, "Llama", **COMMON, tie_word_embeddings=True)
    tensors = load_file(str(tmp_path / "model.safetensors"))
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, str(tmp_path / "model.safetensors"))
    report = convert(tmp_path, tmp_path / "out.gguf", "f32")
    assert report.ignored == ["lm_head.weight"] and "output.weight" not in [t.name for t in report.tensors]
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, str(tmp_path / "model.safetensors"))
    with pytest.raises(ConvertError, match="tie_word_embeddings is true"):
        convert(tmp_path, tmp_path / "out.gguf", "f32")


def test_rotary_buffers_are_ignored_by_name(tmp_path: Path) -> None:
    save_model(tmp_path, "Llama", **COMMON, tie_word_embeddings=True)
    tensors = load_file(str(tmp_path / "model.safetensors"))
    save_file({**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, str(tmp_path / "model.safetensors"))
    assert convert(tmp_path, tmp_path / "out.gguf").ignored == ["model.layers.0.self_attn.rotary_emb.inv_freq"]
