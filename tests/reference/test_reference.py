"""The reference model's own tests: against transformers, the identities that SPEC 3 to 5 give, and that every option matters."""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from reference import attention, moe
from reference.config import LayerConfig, ModelConfig, MoeConfig, load_config, rope_of
from reference.model import HySparseForCausalLM, OracleLlama, Trace, load_weights, nmse
from reference.presets import PRESETS
from reference.rope import apply_rope, inverse_frequencies
from reference.stock import STOCK, make_stock, transformers_logits
from reference.tiny import BASE_CONFIG, VOCAB_SIZE, make_checkpoint, make_preset

N_TOKENS = 200
TOKENS = torch.randint(0, VOCAB_SIZE, (N_TOKENS,), generator=torch.Generator().manual_seed(5)).tolist()

ROPES: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 640000.0},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64},
    {"rope_type": "yarn", "rope_theta": 50000.0, "factor": 4.0, "original_max_position_embeddings": 256,
     "beta_fast": 24.0, "beta_slow": 2.0, "attention_factor": 1.25},
    {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64,
     "mscale": 1.0, "mscale_all_dim": 0.7},
    {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64, "truncate": False},
    {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 8192},
]


@pytest.mark.parametrize("partial", [1.0, 0.5])
@pytest.mark.parametrize("parameters", ROPES, ids=lambda p: p["rope_type"])
def test_rope_frequencies_equal_transformers(parameters: dict[str, Any], partial: float) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {**parameters, "partial_rotary_factor": partial}
    ours, magnitude = inverse_frequencies(rope_of({"rope_parameters": parameters, "max_position_embeddings": 4096}, "full_attention"), 128)
    if parameters["rope_type"] == "default":
        dim = int(128 * partial)
        theirs, their_magnitude = 1.0 / parameters["rope_theta"] ** (torch.arange(0, dim, 2).float() / dim), 1.0
    else:
        config = transformers.LlamaConfig(hidden_size=512, num_attention_heads=4, head_dim=128, rope_parameters=parameters,
                                          max_position_embeddings=4096)
        theirs, their_magnitude = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"))
    torch.testing.assert_close(ours.float(), theirs, rtol=2e-5, atol=0)
    assert magnitude == pytest.approx(their_magnitude)


def test_rope_depends_on_distance_only() -> None:
    rope = rope_of({"rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 0.5}}, "full_attention")
    q, k = torch.randn(2, 1, 1, 32, dtype=torch.float64)
    products = [(apply_rope(q, torch.tensor([t]), rope) * apply_rope(k, torch.tensor([t - 7]), rope)).sum() for t in (7, 20, 1000)]
    torch.testing.assert_close(products[0], products[1])
    torch.testing.assert_close(products[0], products[2])
    assert torch.equal(apply_rope(q, torch.tensor([9]), rope)[..., 16:], q[..., 16:])


@pytest.mark.parametrize("name", STOCK)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    checkpoint = make_stock(tmp_path, name)
    ours = HySparseForCausalLM.from_checkpoint(checkpoint).forward(TOKENS)
    assert nmse(ours, transformers_logits(checkpoint, TOKENS)) < 1e-9


def test_selection_by_hand() -> None:
    """Two heads of one group over 5 tokens in blocks of 2: the maximum over both heads, the causal edge, ties to the lower block."""
    p = torch.zeros(2, 5, 5)
    p[0, 4] = torch.tensor([0.1, 0.2, 0.3, 0.0, 0.1])
    p[1, 4] = torch.tensor([0.3, 0.1, 0.1, 0.1, 0.3])
    p[:, 0, 0] = 1.0
    scores = attention.block_scores(torch.where(attention.causal(5), p.log(), -torch.inf), 1, 2)
    assert scores.shape == (1, 5, 3)
    torch.testing.assert_close(scores[0, 4].exp(), torch.tensor([0.3, 0.3, 0.3]))
    assert attention.select_blocks(scores, 2)[0, 4].tolist() == [True, True, False]
    assert attention.select_blocks(scores, 2)[0, 0].tolist() == [True, False, False]
    assert attention.selection_margin(scores, 2)[0].tolist()[4] == pytest.approx(0.0, abs=1e-6)
    assert attention.selection_margin(scores, 2)[0, 0].isinf()


def test_scores_are_log_probability_maxima(tmp_path: Path) -> None:
    """S equals the log of the paper's block maximum of softmax probabilities, sink included, computed the slow way."""
    q, k, v = torch.randn(12, 4, 32), torch.randn(12, 2, 32), torch.randn(12, 2, 32)
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    _, log_p = attention.attend(q, k, v, attention.causal(12), sinks)
    scores = attention.block_scores(log_p, 2, 5)
    for t in range(12):
        for group in range(2):
            best = [0.0, 0.0, 0.0]
            for h in (2 * group, 2 * group + 1):
                weights = torch.tensor([float(q[t, h] @ k[j, group]) / 32**0.5 for j in range(t + 1)] + [float(sinks[h])]).softmax(0)
                for j in range(t + 1):
                    best[j // 5] = max(best[j // 5], float(weights[j]))
            torch.testing.assert_close(scores[group, t].exp(), torch.tensor(best), rtol=1e-4, atol=1e-7)


def test_window_counts_the_current_token() -> None:
    assert attention.in_window(5, 2)[0].sum(-1).tolist() == [1, 2, 2, 2, 2]
    assert attention.in_window(5, 1)[0].equal(torch.eye(5, dtype=torch.bool))


def test_all_blocks_selected_is_full_attention(tmp_path: Path) -> None:
    """With every block selected the global branch is full attention on K*, V* (SPEC 4); the window as long as the context likewise."""
    n, n_head = 50, 4
    q, k, v = (torch.randn(n, heads, 32, dtype=torch.float64) for heads in (n_head, 2, 2))
    full, log_p = attention.attend(q, k, v, attention.causal(n))
    selection = attention.select_blocks(attention.block_scores(log_p, 2, 16), 4)
    torch.testing.assert_close(attention.attend(q, k, v, attention.selected_keys(selection, n, 16))[0], full)
    torch.testing.assert_close(attention.attend(q, k, v, attention.in_window(n, n))[0], full)
    torch.testing.assert_close(attention.attend(q, k, v, attention.forced_keys(selection, n, 16, 3))[0], full)


def test_gates_are_halves_when_their_weights_are_zero(tmp_path: Path) -> None:
    """sigmoid(0) = 1/2 for both branches: equals the gateless model with W_o halved in the sparse layers, for both gate kinds."""
    for gate in ("head", "channel"):
        checkpoint = make_checkpoint(tmp_path / gate, attention_gate=gate)
        config, weights = load_config(checkpoint), load_weights(checkpoint)
        gates = [name for name in weights if name.endswith(("sparse_gate_proj.weight", "swa_gate_proj.weight"))]
        weights.update({name: torch.zeros_like(weights[name]) for name in gates})
        zero_gates = HySparseForCausalLM(config, weights).forward(TOKENS)
        sparse = [il for il, layer in enumerate(config.layers) if layer.kind == "sparse"]
        halved = {**weights, **{f"model.layers.{il}.self_attn.o_proj.weight": weights[f"model.layers.{il}.self_attn.o_proj.weight"] / 2
                                for il in sparse}}
        gateless = replace(config, layers=tuple(replace(layer, gate=None) for layer in config.layers))
        assert nmse(zero_gates, HySparseForCausalLM(gateless, halved).forward(TOKENS)) < 1e-10


def _tiny_llama(tmp_path: Path) -> Path:
    return make_stock(tmp_path / "llama", "llama")


def test_oracle_mode_with_everything_selected_is_full(tmp_path: Path) -> None:
    checkpoint = _tiny_llama(tmp_path)
    full = HySparseForCausalLM.from_checkpoint(checkpoint).forward(TOKENS)
    everything = OracleLlama.from_stock(checkpoint, [0, 2], block_size=16, top_k_tokens=208, window=1).forward(TOKENS)
    some = OracleLlama.from_stock(checkpoint, [0, 2], block_size=16, top_k_tokens=32, window=8).forward(TOKENS)
    assert nmse(everything, full) < 1e-10
    assert nmse(some, full) > 1e-4
    assert nmse(some[:32], full[:32]) < 1e-10  # two blocks are everything there


def test_oracle_list_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="full_layers"):
        OracleLlama.from_stock(_tiny_llama(tmp_path), [1, 2])


@pytest.mark.parametrize("name", PRESETS)
def test_float32_agrees_with_float64(name: str, tmp_path: Path) -> None:
    """No preset has a selection or routing so close that float32 rounding flips it for TOKENS."""
    checkpoint = make_preset(tmp_path, name)
    model, exact = HySparseForCausalLM.from_checkpoint(checkpoint), HySparseForCausalLM.from_checkpoint(checkpoint, torch.float64)
    trace, exact_trace = Trace(), Trace()
    assert nmse(model.forward(TOKENS, trace), exact.forward(TOKENS, exact_trace)) < 1e-10
    for stage, value in trace.stages.items():
        if stage.startswith("selection"):
            assert torch.equal(value, exact_trace.stages[stage]), stage
    assert exact.margins(exact_trace).min() > 2e-5


def _changed(config: ModelConfig, **layer_changes: Any) -> ModelConfig:
    def change(layer: LayerConfig) -> LayerConfig:
        return replace(layer, **layer_changes)

    return replace(config, layers=tuple(change(layer) for layer in config.layers))


@pytest.mark.parametrize("what", ["gates", "sinks", "sparse_sinks", "value_scale", "window", "top_k", "block_size", "kind", "qk_norm"])
def test_every_option_matters(what: str, tmp_path: Path) -> None:
    """Leaving one thing out changes the logits by far more than any tolerance that tests of the runtime use."""
    checkpoint = make_checkpoint(tmp_path, add_full_attention_sink_bias=True, add_sparse_attention_sink_bias=True,
                                 add_swa_attention_sink_bias=True, attention_value_scale=0.707, qk_norm=True)
    config, weights = load_config(checkpoint), load_weights(checkpoint)
    changed = {
        "gates": lambda: _changed(config, gate=None),
        "sinks": lambda: _changed(config, sinks=False),
        "sparse_sinks": lambda: _changed(config, sparse_sinks=False),
        "value_scale": lambda: replace(config, value_scale=1.0),
        "window": lambda: replace(config, window=config.window + 1),
        "top_k": lambda: replace(config, top_k=config.top_k + 1),
        "block_size": lambda: replace(config, block_size=config.block_size + 1),
        "kind": lambda: replace(config, layers=tuple(  # window only
            replace(layer, kind="sliding") if layer.kind == "sparse" else layer for layer in config.layers)),
        "qk_norm": lambda: replace(config, qk_norm=False),
    }[what]()
    baseline = HySparseForCausalLM(config, weights).forward(TOKENS)
    assert nmse(HySparseForCausalLM(changed, weights).forward(TOKENS), baseline) > 1e-3


def test_given_selections_replace_the_models_own(tmp_path: Path) -> None:
    model = HySparseForCausalLM.from_checkpoint(make_checkpoint(tmp_path))
    trace = Trace()
    logits = model.forward(TOKENS, trace)
    own = {il: trace.stages[f"selection-{il}"] for il in trace.scores}
    assert torch.equal(model.forward(TOKENS, selections=own), logits)
    first_only = {il: torch.zeros_like(s).index_fill(-1, torch.tensor([0]), True) for il, s in own.items()}
    assert nmse(model.forward(TOKENS, selections=first_only), logits) > 1e-3


def test_routing_by_hand() -> None:
    """The bias and the groups choose, the unbiased scores weigh."""
    router = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    config = MoeConfig(n_expert=4, n_expert_used=1, n_ff=8, norm_topk_prob=False, routed_scaling_factor=2.0)
    experts, weights = moe.route(router, torch.tensor([0.0, 0.0, 1.0, 0.0]), config)
    assert experts.tolist() == [[2]]
    torch.testing.assert_close(weights, torch.tensor([[1.0]]))  # 2 * sigmoid(0)
    grouped = replace(config, n_group=2, topk_group=1, n_expert_used=2, norm_topk_prob=True)
    experts, weights = moe.route(router, torch.tensor([-1.0, 0.0, 0.0, 0.9]), grouped)
    assert sorted(experts[0].tolist()) == [2, 3]
    torch.testing.assert_close(weights.sum(), torch.tensor(2.0))
    softmax = replace(config, scoring_func="softmax", n_expert_used=2)
    torch.testing.assert_close(moe.route(router, None, softmax)[1], 2.0 * router.softmax(-1)[:, :2])


def test_layouts_hold_the_same_tensors(tmp_path: Path) -> None:
    """Shards and packed experts are other layouts of a model, not other models."""
    single, sharded = make_checkpoint(tmp_path / "single"), make_checkpoint(tmp_path / "sharded", shards=3)
    assert len(list(sharded.glob("*.safetensors"))) == 3
    index = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    a, b = load_weights(single), load_weights(sharded)
    assert a.keys() == b.keys() == index.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    options = {**PRESETS["moe_groups"], "mlp_layer_types": ["sparse"] * 7}
    apart = make_checkpoint(tmp_path / "apart", **options)
    weights = load_weights(apart)
    packed = {name: w for name, w in weights.items() if ".mlp.experts." not in name}
    for il in range(7):
        prefix = f"model.layers.{il}.mlp.experts."
        gate, up, down = (torch.stack([weights[f"{prefix}{e}.{p}_proj.weight"] for e in range(16)]) for p in ("gate", "up", "down"))
        packed[prefix + "gate_up_proj"], packed[prefix + "down_proj"] = torch.cat([gate, up], dim=1), down
    config = load_config(apart)
    assert torch.equal(HySparseForCausalLM(config, packed).forward(TOKENS), HySparseForCausalLM(config, weights).forward(TOKENS))


def test_tokenizer_and_template(tmp_path: Path) -> None:
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(make_checkpoint(tmp_path))
    assert len(tokenizer) <= BASE_CONFIG["vocab_size"]
    text = "Once upon a time: 12 naïve 日本 tokens\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False)
    assert chat == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode(chat)[0] == 1
