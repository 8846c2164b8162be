"""Configs and tensors that do not fit: refused before any weight is read, naming the field, what was found and what was expected."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.presets import FULL, SLIDING, SPARSE
from reference.tiny import make_checkpoint
from safetensors.numpy import load_file, save_file

from pyhysparse.convert import ConvertError, convert, resolve_source

MISSING = object()
MOE = {"mlp_layer_types": ["dense"] + ["sparse"] * 6, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """full sparse sparse full sliding sparse full, dense."""
    return make_checkpoint(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("moe"), **MOE)


def refused(folder: Path, work: Path, fields: dict[str, Any]) -> str:
    """The message that `convert` ends with when config.json is changed."""
    data = {**json.loads((folder / "config.json").read_text()), **fields}
    copy = work / "copy"
    copy.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if not (copy / path.name).exists():
            (copy / path.name).symlink_to(path)
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps({k: v for k, v in data.items() if v is not MISSING}))
    with pytest.raises(ConvertError) as e:
        convert(copy, work / "out.gguf", "f32")
    assert not (work / "out.gguf").exists()
    return str(e.value)


CONFIGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "layer_types too short": ({"layer_types": [FULL] * 6}, ("layer_types", "6 entries", "7")),
    "layer_types no list": ({"layer_types": FULL}, ("layer_types", "str", "a list of 7")),
    "layer_types missing": ({"layer_types": MISSING}, ("layer_types: missing", "hybrid_layer_pattern")),
    "unknown layer type": ({"layer_types": [FULL] * 6 + ["linear"]}, ("layer_types[6]", "'linear'", "one of full_attention, sparse")),
    "first layer sparse": ({"layer_types": [SPARSE] + [FULL] * 6}, ("layer_types[0]", "'sparse_attention'", "first must be full")),
    "sliding before sparse": ({"layer_types": [SLIDING, SPARSE] + [FULL] * 5}, ("layer_types[1]", "needs a full layer above")),
    "gate": ({"attention_gate": "token"}, ("attention_gate", "'token'", "head, channel")),
    "top-k": ({"sparse_topk_tokens": 60}, ("sparse_topk_tokens", "60", "a multiple of sparse_block_size (16)")),
    "top-k 0": ({"sparse_topk_tokens": 0}, ("sparse_topk_tokens", "0", "an integer of 1 to")),
    "top-k missing": ({"sparse_topk_tokens": MISSING}, ("sparse_topk_tokens: missing",)),
    "block size 0": ({"sparse_block_size": 0}, ("sparse_block_size", "0")),
    "block size missing": ({"sparse_block_size": MISSING}, ("sparse_block_size: missing",)),
    "window 0": ({"sliding_window": 0}, ("sliding_window", "0", "an integer of 1 to")),
    "window missing": ({"sliding_window": MISSING}, ("sliding_window: missing",)),
    "window is a bool": ({"sliding_window": True}, ("sliding_window", "True")),
    "n_head_kv": ({"num_key_value_heads": 3}, ("num_key_value_heads", "3", "a divisor of num_attention_heads (4)")),
    "swa n_head_kv": ({"swa_num_key_value_heads": 3}, ("swa_num_key_value_heads", "3", "divisor")),
    "hidden_size missing": ({"hidden_size": MISSING}, ("config.json: hidden_size: missing",)),
    "hidden_size text": ({"hidden_size": "64"}, ("hidden_size", "'64'", "an integer")),
    "layers 0": ({"num_hidden_layers": 0}, ("num_hidden_layers", "0")),
    "layers 1e9": ({"num_hidden_layers": 10**9}, ("num_hidden_layers", "1000000000")),
    "vocab_size missing": ({"vocab_size": MISSING}, ("vocab_size: missing",)),
    "epsilon": ({"rms_norm_eps": 0}, ("rms_norm_eps", "0", "a number above 0")),
    "epsilon NaN": ({"rms_norm_eps": float("nan")}, ("rms_norm_eps", "nan")),
    "activation": ({"hidden_act": "gelu"}, ("hidden_act", "'gelu'", "'silu'")),
    "rope type": ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, ("rope_parameters: rope_type", "'longrope'", "yarn")),
    "rope field": ({"rope_parameters": {"rope_theta": 1e4, "alpha": 3}}, ("rope_parameters: alpha", "3")),
    "rope factor": ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, ("rope_parameters: factor: missing",)),
    "rope theta": ({"rope_parameters": {"rope_theta": -1}}, ("rope_theta", "-1")),
    "rope of full layers missing": ({"rope_parameters": {SPARSE: {"rope_theta": 1e4}}}, ("rope_parameters.full_attention", "None")),
    "odd rotary dims": ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.1}}, ("partial_rotary_factor", "3 of 32")),
    "rope is a list": ({"rope_parameters": []}, ("rope_parameters", "[]", "an object")),
    "yarn untruncated": ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2, "truncate": False}},
                         ("truncate", "False")),
    "llama3 factors": ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 2, "low_freq_factor": 4,
                                            "high_freq_factor": 1}},
                       ("high_freq_factor", "1", "more than low_freq_factor (4)")),
    "MoE without layers": ({"n_routed_experts": 8}, ("mlp_layer_types: missing",)),
    "MLA": ({"multi_latent_attention": True}, ("multi_latent_attention", "MLA")),
    "model type": ({"model_type": "mistral", "architectures": ["MistralForCausalLM"]},
                   ("model_type", "'mistral'", "hysparse, llama, qwen2, qwen3, mimo_v2_flash, mimo_v2")),
    "no model type": ({"model_type": MISSING, "architectures": MISSING}, ("model_type", "nothing")),
    "other architecture": ({"architectures": ["HySparseForSequenceClassification"]}, ("architectures", "HySparseForCausalLM")),
    "quantised": ({"quantization_config": {"quant_method": "gptq"}}, ("quant_method", "'gptq'", "'fp8'")),
    "MXFP4": ({"quantization_config": {"quant_method": "fp8", "store_dtype": "mxfp4"}}, ("store_dtype", "mxfp4")),
    "eos id": ({"eos_token_id": 320}, ("eos_token_id", "320", "below vocab_size (320)")),
    # contradictions between config and tensors
    "sinks promised": ({"add_swa_attention_sink_bias": True}, ("missing", "model.layers.1.self_attn.sinks")),
    "gates not promised": ({"attention_gate": None}, ("6 tensors", "no place", "self_attn.sparse_gate_proj.weight")),
    "wider FFN": ({"intermediate_size": 128}, ("model.layers.0.mlp.gate_proj.weight: shape", "[96, 64]", "[128, 64]")),
    "channel gates": ({"attention_gate": "channel"}, ("sparse_gate_proj.weight: shape", "[4, 64]", "[128, 64]")),
    "more layers": ({"num_hidden_layers": 8, "layer_types": [FULL, SPARSE, SPARSE, FULL, SLIDING, SPARSE, FULL, FULL]},
                    ("9 tensors", "missing", "model.layers.7.input_layernorm.weight")),
    "fewer layers": ({"num_hidden_layers": 6, "layer_types": [FULL, SPARSE, SPARSE, FULL, SLIDING, SPARSE]},
                     ("9 tensors of the checkpoint have no place", "model.layers.6.")),
    "tied, but a head": ({"tie_word_embeddings": True}, ("lm_head.weight", "tie_word_embeddings")),
}
ROUTING: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "mlp type": ({"mlp_layer_types": ["dense"] * 6 + ["moe"]}, ("mlp_layer_types[6]", "'moe'")),
    "mlp length": ({"mlp_layer_types": ["dense"]}, ("mlp_layer_types", "1 entries", "7")),
    "moe_layer_freq": ({"mlp_layer_types": MISSING, "moe_layer_freq": [2] * 7}, ("moe_layer_freq[0]", "2", "0 or 1")),
    "used > experts": ({"num_experts_per_tok": 9}, ("num_experts_per_tok", "9", "at most the 8")),
    "groups": ({"n_group": 3}, ("n_group", "3", "a divisor of n_routed_experts (8)")),
    "group used": ({"n_group": 4, "topk_group": 5}, ("topk_group", "5", "at most n_group (4)")),
    "used > groups' experts": ({"n_group": 4, "topk_group": 1, "num_experts_per_tok": 3}, ("num_experts_per_tok", "3", "at most the 2")),
    "scoring": ({"scoring_func": "sqrtsoftplus"}, ("scoring_func", "'sqrtsoftplus'", "sigmoid, softmax")),
    "top-k method": ({"topk_method": "group_limited_greedy", "n_group": 2}, ("topk_method", "'group_limited_greedy'")),
    "experts": ({"n_routed_experts": 9}, ("mlp.gate.weight: shape", "[8, 64]", "[9, 64]")),
    "width missing": ({"moe_intermediate_size": MISSING}, ("moe_intermediate_size: missing",)),
    "shared promised": ({"n_shared_experts": 1}, ("missing", "mlp.shared_experts.gate_proj.weight")),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_config(plain: Path, tmp_path: Path, case: str) -> None:
    fields, parts = CONFIGS[case]
    message = refused(plain, tmp_path, fields)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("case", ROUTING)
def test_routing_config(moe: Path, tmp_path: Path, case: str) -> None:
    fields, parts = ROUTING[case]
    message = refused(moe, tmp_path, fields)
    assert all(part in message for part in parts), message


def changed(folder: Path, change: Any) -> None:
    tensors = load_file(str(folder / "model.safetensors"))
    change(tensors)
    save_file(tensors, str(folder / "model.safetensors"))


def test_tensors_left_over_missing_or_doubled(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, **MOE)
    original = (tmp_path / "model.safetensors").read_bytes()

    def message() -> str:
        with pytest.raises(ConvertError) as e:
            convert(tmp_path, tmp_path / "out.gguf", dry_run=True)
        (tmp_path / "model.safetensors").write_bytes(original)
        return str(e.value)

    changed(tmp_path, lambda t: t.update({f"model.layers.{i}.adapter.weight": np.zeros(2, np.float32) for i in range(12)}))
    text = message()
    assert "12 tensors of the checkpoint have no place" in text and "model.layers.0.adapter.weight" in text and "and 4 more" in text
    changed(tmp_path, lambda t: t.pop("model.layers.2.mlp.experts.5.up_proj.weight"))
    assert message() == "1 tensors that the config asks for are missing: model.layers.2.mlp.experts.5.up_proj.weight"
    changed(tmp_path, lambda t: t.update({"model.layers.2.mlp.experts.8.up_proj.weight": np.zeros((32, 64), np.float32)}))
    assert "no place" in message()
    changed(tmp_path, lambda t: t.update({"model.layers.1.self_attn.gate_proj.weight": np.zeros((4, 64), np.float32)}))
    assert "swa_gate_proj.weight and model.layers.1.self_attn.gate_proj.weight are two names of the same weight" in message()
    changed(tmp_path, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(128, np.float32)}))
    assert "attention_bias: found false" in message()
    changed(tmp_path, lambda t: t.update({"model.norm.weight": t["model.norm.weight"].reshape(8, 8)}))
    assert "tensor model.norm.weight: shape: found [8, 8], expected [64]" in message()


def test_stock_families(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 1}
    for name, fields, parts in (
            ("Llama", {"mlp_bias": True}, ("mlp_bias", "True")),
            ("Llama", {"partial_rotary_factor": 0.5}, ("partial_rotary_factor", "8 of 16", "whole heads")),
            ("Qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
             ("layer_types[0]", "'sliding_attention'"))):
        folder = tmp_path / name / next(iter(fields))
        config = getattr(transformers, f"{name}Config")(**sizes, **fields)
        getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(folder)
        with pytest.raises(ConvertError) as e:
            convert(folder, folder / "out.gguf")
        assert all(part in str(e.value) for part in parts), e.value


def test_outtype_and_source_names(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="outtype: found 'q4_k_m', expected one of auto, f32"):
        convert(plain, tmp_path / "out.gguf", "q4_k_m")
    assert resolve_source(plain) == plain
    for name in (tmp_path / "nothing", "a/b/c", "./model", "model"):
        with pytest.raises(ConvertError, match="no such folder"):
            resolve_source(name)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConvertError, match="a file; expected a checkpoint folder"):
        resolve_source(tmp_path / "file")


def test_hub_download_is_asked_for_the_right_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    calls: list[tuple[str, dict[str, Any]]] = []

    def snapshot_download(repo: str, **options: Any) -> str:
        calls.append((repo, options))
        if repo == "user/gone":
            raise OSError("404")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    assert resolve_source("user/model", revision="main", token="t", cache_dir=tmp_path) == tmp_path
    repo, options = calls[0]
    assert repo == "user/model" and (options["revision"], options["token"], options["cache_dir"]) == ("main", "t", tmp_path)
    assert "*.safetensors" in options["allow_patterns"] and not any(p.endswith(".bin") for p in options["allow_patterns"])
    with pytest.raises(ConvertError, match="user/gone: no such folder, and its download failed: 404"):
        resolve_source("user/gone")
