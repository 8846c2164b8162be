"""HySparse checkpoints: every tensor lands with its values, every key says what docs/gguf.md wants."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gguf_values import Values
from reference.presets import FULL, PRESETS, SPARSE
from reference.tiny import make_checkpoint, make_preset
from safetensors.numpy import load_file, save_file

from pyhysparse.convert import ConvertError, convert

LAYER_NAMES = {  # written out here on purpose: the test must not read the table that it checks
    "input_layernorm.weight": "attn_norm.weight", "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight", "self_attn.k_proj.weight": "attn_k.weight", "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight", "self_attn.q_proj.bias": "attn_q.bias", "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias", "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "self_attn.sinks": "attn_sinks.weight", "self_attn.sparse_sinks": "attn_sinks_sparse.weight",
    "self_attn.sparse_gate_proj.weight": "attn_gate_sparse.weight", "self_attn.swa_gate_proj.weight": "attn_gate_swa.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight", "mlp.up_proj.weight": "ffn_up.weight", "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight", "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight", "mlp.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
}
GLOBAL_NAMES = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
                "lm_head.weight": "output.weight"}


def stored(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint, float32."""
    out: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.safetensors")):
        out.update(load_file(str(path)))
    return out


def expected(folder: Path) -> dict[str, np.ndarray]:
    """What the GGUF file must hold, by GGUF name."""
    out: dict[str, np.ndarray] = {}
    experts: dict[tuple[str, str], dict[int, np.ndarray]] = {}
    for name, w in stored(folder).items():
        if name in GLOBAL_NAMES:
            out[GLOBAL_NAMES[name]] = w
            continue
        layer, rest = name.removeprefix("model.layers.").split(".", 1)
        if rest == "mlp.experts.gate_up_proj":
            half = w.shape[1] // 2
            out[f"blk.{layer}.ffn_gate_exps.weight"], out[f"blk.{layer}.ffn_up_exps.weight"] = w[:, :half], w[:, half:]
        elif rest == "mlp.experts.down_proj":
            out[f"blk.{layer}.ffn_down_exps.weight"] = w
        elif rest.startswith("mlp.experts."):
            e, kind, _ = rest.removeprefix("mlp.experts.").split(".")
            experts.setdefault((layer, kind.removesuffix("_proj")), {})[int(e)] = w
        else:
            out[f"blk.{layer}.{LAYER_NAMES[rest]}"] = w
    for (layer, kind), parts in experts.items():
        out[f"blk.{layer}.ffn_{kind}_exps.weight"] = np.stack([parts[e] for e in range(len(parts))])
    return out


def converted(folder: Path, outtype: str = "f32") -> Values:
    out = folder / "out.gguf"
    convert(folder, out, outtype)
    return Values(out)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_tensor_has_its_values(tmp_path: Path, preset: str) -> None:
    make_preset(tmp_path, preset)
    want, got = expected(tmp_path), converted(tmp_path)
    rope = {name for name in got.tensors if name.startswith("rope_freqs")}
    assert set(got.tensors) - rope == set(want)
    for name, w in want.items():
        assert got.tensors[name].shape == w.shape, name
        assert np.array_equal(got.tensors[name], w), name


def test_layer_description(tmp_path: Path) -> None:
    make_preset(tmp_path, "dense")
    g = converted(tmp_path)
    assert g.keys["general.architecture"] == "hysparse"
    assert g.arch_key("block_count") == 7 and g.arch_key("vocab_size") == 320 and g.arch_key("feed_forward_length") == 96
    # full sparse sparse full sliding sparse full
    assert g.arch_key("attention.kv_source") == [0, 0, 0, 3, -1, 3, 6]
    assert g.arch_key("attention.selection_source") == [-1, 0, 0, -1, -1, 3, -1]
    assert g.arch_key("attention.local") == [0, 1, 1, 0, 1, 1, 0]
    assert g.arch_key("expert_layers") == [0] * 7
    assert g.arch_key("attention.head_count") == 4 and g.arch_key("attention.head_count_kv") == [2] * 7
    assert (g.arch_key("attention.gate"), g.arch_key("attention.sliding_window")) == (1, 24)
    assert (g.arch_key("attention.sparse.block_size"), g.arch_key("attention.sparse.top_k_blocks")) == (16, 4)
    assert g.arch_key("attention.value_scale") is None and g.arch_key("rope.freq_base_sparse") is None


def test_kv_heads_gates_and_dims(tmp_path: Path) -> None:
    make_preset(tmp_path / "a", "kv_heads_differ")
    assert converted(tmp_path / "a").arch_key("attention.head_count_kv") == [2, 8, 8, 2, 8, 8, 2]
    make_preset(tmp_path / "b", "gate_channel")
    assert converted(tmp_path / "b").arch_key("attention.gate") == 2
    make_preset(tmp_path / "c", "gate_none")
    assert converted(tmp_path / "c").arch_key("attention.gate") == 0
    make_preset(tmp_path / "d", "hybrid_swa")
    g = converted(tmp_path / "d")
    assert (g.arch_key("attention.key_length"), g.arch_key("attention.value_length")) == (32, 32)
    assert (g.arch_key("attention.key_length_swa"), g.arch_key("attention.value_length_swa")) == (64, 32)
    assert g.arch_key("attention.value_scale") == pytest.approx(0.707)
    assert (g.arch_key("rope.dimension_count"), g.arch_key("rope.dimension_count_swa")) == (32, 64)
    assert g.arch_key("attention.sparse.block_size") is None


def test_rope_keys(tmp_path: Path) -> None:
    make_preset(tmp_path / "a", "rope_per_type")
    g = converted(tmp_path / "a")
    assert [g.arch_key(f"rope.scaling.{k}") for k in ("type", "factor", "original_context_length")] == ["yarn", 4, 64]
    assert [g.arch_key(f"rope.dimension_count{suffix}") for suffix in ("", "_sparse", "_swa")] == [32, 16, 32]
    assert g.arch_key("rope.freq_base_sparse") == 640000 and g.arch_key("rope.scaling_sparse.type") is None
    assert [g.arch_key(f"rope.{k}") for k in ("scaling_swa.type", "scaling_swa.factor", "freq_base_swa")] == ["linear", 2, 1000]
    make_preset(tmp_path / "b", "rope_yarn_options")
    g = converted(tmp_path / "b")
    assert g.arch_key("rope.scaling.attn_factor") == pytest.approx(1.25 / (1 + 0.1 * np.log(4.0)), rel=1e-6)
    assert (g.arch_key("rope.scaling.yarn_beta_fast"), g.arch_key("rope.scaling.yarn_beta_slow")) == (24, 2)
    make_preset(tmp_path / "c", "rope_llama3_per_type")
    g = converted(tmp_path / "c")
    assert g.tensors["rope_freqs.weight"].shape == (16,) and g.tensors["rope_freqs_sparse.weight"].max() == 4
    assert "rope_freqs_swa.weight" not in g.tensors and g.arch_key("rope.freq_base_swa") == 500


def test_moe_keys(tmp_path: Path) -> None:
    make_preset(tmp_path / "a", "moe_groups")
    g = converted(tmp_path / "a")
    assert g.arch_key("expert_layers") == [0, 1, 1, 1, 1, 1, 1]
    assert [g.arch_key(k) for k in ("expert_count", "expert_used_count", "expert_feed_forward_length", "expert_group_count",
                                    "expert_group_used_count", "expert_gating_func", "expert_weights_scale")] == [16, 4, 32, 4, 2, 2, 2.5]
    assert g.arch_key("expert_weights_norm") is True
    make_preset(tmp_path / "b", "moe_shared")
    g = converted(tmp_path / "b")
    assert [g.arch_key(f"expert_{k}") for k in ("shared_count", "shared_feed_forward_length", "gating_func")] == [2, 64, 1]


def rewrite(folder: Path, rename: dict[str, str], config: dict[str, object], drop: tuple[str, ...] = ()) -> None:
    """Rename parts of tensor names and change config.json's fields."""
    tensors = {}
    for name, w in load_file(str(folder / "model.safetensors")).items():
        for old, new in rename.items():
            name = name.replace(old, new)
        tensors[name] = w
    save_file(tensors, str(folder / "model.safetensors"))
    data = json.loads((folder / "config.json").read_text())
    for name in drop:
        data.pop(name, None)
    data.update(config)
    (folder / "config.json").write_text(json.dumps(data))


def same(a: Values, b: Values) -> None:
    assert set(a.tensors) == set(b.tensors)
    for name, w in a.tensors.items():
        assert np.array_equal(w, b.tensors[name]), name
    assert {k: v for k, v in a.keys.items() if k.startswith("hysparse.")} == {k: v for k, v in b.keys.items() if k.startswith("hysparse.")}


def test_paddlefleet_names(tmp_path: Path) -> None:
    """PaddleFleet's field and tensor names give the same file: top-k in blocks, [left, right] windows, a flag list for the layers."""
    overrides = {"layer_types": [FULL, SPARSE, SPARSE, FULL], "num_hidden_layers": 4, "attention_gate": "channel", "sliding_window": 24,
                 "add_swa_attention_sink_bias": True, "add_sparse_attention_sink_bias": True}
    make_checkpoint(tmp_path / "ours", **overrides)
    make_checkpoint(tmp_path / "theirs", **overrides)
    rewrite(tmp_path / "theirs",
            {"swa_gate_proj": "gate_proj", "attn.sinks": "attn.swa_attn_sink", "attn.sparse_sinks": "attn.sparse_attn_sink"},
            {"enable_hy_sparse_attention": True, "hy_sparse_block_size": 16, "hy_sparse_topk": 4, "window_attn_skip_freq": [0, 1, 1, 0, 0],
             "num_nextn_predict_layers": 1, "sliding_window": [24, 24], "gated_attention": True, "use_qk_norm": False},
            ("model_type", "architectures", "layer_types", "sparse_block_size", "sparse_topk_tokens", "attention_gate", "qk_norm",
             "add_sparse_attention_sink_bias"))
    same(converted(tmp_path / "ours"), converted(tmp_path / "theirs"))


def test_hub_field_names(tmp_path: Path) -> None:
    """MiMo-V2's own config names (hybrid_layer_pattern, moe_layer_freq, layernorm_epsilon, rope_theta) mean the same here."""
    moe = {"mlp_layer_types": ["dense", "sparse"], "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    overrides = {"layer_types": [FULL, SPARSE], "num_hidden_layers": 2, **moe}
    make_checkpoint(tmp_path / "ours", **overrides)
    make_checkpoint(tmp_path / "theirs", **overrides)
    rewrite(tmp_path / "theirs", {},
            {"hybrid_layer_pattern": [0, 1], "moe_layer_freq": [0, 1], "layernorm_epsilon": 1e-5, "rope_theta": 10000.0},
            ("layer_types", "mlp_layer_types", "rms_norm_eps", "rope_parameters"))
    same(converted(tmp_path / "ours"), converted(tmp_path / "theirs"))


def test_silent_flags_follow_the_tensors(tmp_path: Path) -> None:
    """Without add_*_sink_bias, qk_norm, attention_gate and attention_bias in the config, the tensors decide, all layers alike."""
    silent = ("add_swa_attention_sink_bias", "add_sparse_attention_sink_bias", "add_full_attention_sink_bias", "qk_norm", "attention_gate",
              "attention_bias", "tie_word_embeddings")
    overrides = {"add_swa_attention_sink_bias": True, "qk_norm": True, "attention_gate": "channel", "attention_bias": True}
    make_checkpoint(tmp_path / "loud", **overrides)
    make_checkpoint(tmp_path / "silent", **overrides)
    rewrite(tmp_path / "silent", {}, {}, silent)
    same(converted(tmp_path / "loud"), converted(tmp_path / "silent"))
    rewrite(tmp_path / "silent", {"model.layers.5.self_attn.sinks": "model.layers.5.self_attn.other"}, {})
    with pytest.raises(ConvertError, match=r"missing: model\.layers\.5\.self_attn\.sinks"):
        converted(tmp_path / "silent")
