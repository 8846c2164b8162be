"""The whole model in one pass over the full sequence, without caches: embeddings, pre-norm layers, logits."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import linear

from reference import attention
from reference.config import LayerConfig, ModelConfig, load_config, with_oracle
from reference.moe import mlp, moe_mlp
from reference.rope import apply_rope


def load_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint folder, sharded or not; sinks under MiMo-V2's hub name (which transformers saves) get their usual one."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        tensors.update({name.replace(".attention_sink_bias", ".sinks"): t for name, t in load_file(str(file)).items()})
    if not tensors:
        raise FileNotFoundError(f"no safetensors file in {checkpoint}")
    return tensors


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / rms(x) * weight over the last dimension."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


@dataclass
class Oracle:
    """What a full layer leaves to the layers below it."""

    k: torch.Tensor  # K*, after norm and RoPE
    v: torch.Tensor  # V*, scaled
    scores: torch.Tensor | None = None  # S [n_head_kv, n_tokens, n_blocks]
    selection: torch.Tensor | None = None  # I, bool like scores


@dataclass
class Trace:
    """Intermediate results by the runtime's node names, e.g. "attn_out-3"; selections as bool [n_head_kv, n_tokens, n_blocks]."""

    stages: dict[str, torch.Tensor] = field(default_factory=dict)
    scores: dict[int, torch.Tensor] = field(default_factory=dict)  # of blocks, by full layer [n_head_kv, n_tokens, n_blocks]
    choices: dict[int, torch.Tensor] = field(default_factory=dict)  # what experts are ranked by, by MoE layer [n_tokens, n_expert]

    def put(self, name: str, value: torch.Tensor) -> None:
        """Record one stage."""
        self.stages[name] = value


class HySparseForCausalLM:
    """Reference model of every architecture in config.py.

    weights: by checkpoint name; dtype: float32 or float64, of all arithmetic.
    """

    def __init__(self, config: ModelConfig, weights: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> None:
        self.config = config
        self.dtype = dtype
        self.weights = {name: w.to(dtype) for name, w in weights.items()}

    @classmethod
    def from_checkpoint(cls, checkpoint: str | Path, dtype: torch.dtype = torch.float32) -> HySparseForCausalLM:
        """Load config.json and all safetensors of a folder."""
        return cls(load_config(Path(checkpoint)), load_weights(Path(checkpoint)), dtype)

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weights[name + ".weight"], self.weights.get(name + ".bias"))

    def _project(self, name: str, x: torch.Tensor, n_head: int, norm: str | None = None) -> torch.Tensor:
        """Heads of a projection [n_tokens, n_head, d], normed per head when the model has qk_norm."""
        heads = self._linear(name, x).reshape(len(x), n_head, -1)
        return rms_norm(heads, self.weights[norm + ".weight"], self.config.rms_norm_eps) if norm and self.config.qk_norm else heads

    def _gated(self, layer: LayerConfig, name: str, x: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
        """sigmoid(W x) * branch [n_tokens, n_head, d_v]; gate logits are one per head, or head-major one per head and channel."""
        if layer.gate is None:
            return branch
        return self._linear(name, x).sigmoid().reshape(len(x), layer.n_head, -1) * branch

    def _attention(self, il: int, x: torch.Tensor, oracles: dict[int, Oracle], forced_selection: torch.Tensor | None,
                   trace: Trace) -> torch.Tensor:
        config, layer, prefix = self.config, self.config.layers[il], f"model.layers.{il}.self_attn."
        n = len(x)
        positions = torch.arange(n)
        q = apply_rope(self._project(prefix + "q_proj", x, layer.n_head, prefix + "q_norm"), positions, layer.rope)
        k = apply_rope(self._project(prefix + "k_proj", x, layer.n_head_kv, prefix + "k_norm"), positions, layer.rope)
        v = self._project(prefix + "v_proj", x, layer.n_head_kv) * config.value_scale
        sinks = self.weights[prefix + "sinks"] if layer.sinks else None
        sparse_sinks = self.weights[prefix + "sparse_sinks"] if layer.sparse_sinks else None

        if layer.kind == "full":
            out, log_p = attention.attend(q, k, v, attention.causal(n), sinks)
            oracles[il] = Oracle(k, v)
            if layer.emits_scores:
                scores = attention.block_scores(log_p, layer.n_head_kv, config.block_size)
                selection = attention.select_blocks(scores, config.top_k) if forced_selection is None else forced_selection
                oracles[il] = Oracle(k, v, scores, selection)
                trace.scores[il] = scores
                trace.put(f"selection-{il}", selection)
            return out
        if layer.kind == "sliding":
            return attention.attend(q, k, v, attention.in_window(n, config.window), sinks)[0]

        oracle = oracles[layer.oracle_layer]
        assert oracle.selection is not None
        if layer.kind == "forced":
            return attention.attend(q, k, v, attention.forced_keys(oracle.selection, n, config.block_size, config.window), sinks)[0]
        selected = attention.selected_keys(oracle.selection, n, config.block_size)
        global_branch = attention.attend(q, oracle.k, oracle.v, selected, sparse_sinks)[0]
        local_branch = attention.attend(q, k, v, attention.in_window(n, config.window), sinks)[0]
        return (self._gated(layer, prefix + "sparse_gate_proj", x, global_branch)
                + self._gated(layer, prefix + "swa_gate_proj", x, local_branch))

    def _ffn(self, il: int, x: torch.Tensor, experts: torch.Tensor | None, trace: Trace) -> torch.Tensor:
        prefix = f"model.layers.{il}.mlp."
        if not self.config.layers[il].moe:
            return mlp(x, lambda name: self.weights[prefix + name])
        assert self.config.moe is not None
        out, trace.choices[il] = moe_mlp(x, lambda name: self.weights[prefix + name], lambda name: prefix + name in self.weights,
                                         self.config.moe, experts)
        return out

    def forward(self, tokens: Sequence[int], trace: Trace | None = None, selections: dict[int, torch.Tensor] | None = None,
                experts: dict[int, torch.Tensor] | None = None) -> torch.Tensor:
        """Logits [n_tokens, vocab_size] of one sequence.

        trace: receives attn_norm, attn_out (after W_o), ffn_out, l_out, selection of each layer, and result_norm.
        selections: by full layer, bool [n_head_kv, n_tokens, n_blocks]; experts: by MoE layer, int64 [n_tokens, n_expert_used]. Used
        instead of the model's own choices, so that a test can compare everything else where two implementations differ in a near-tie.
        """
        trace = Trace() if trace is None else trace
        eps = self.config.rms_norm_eps
        oracles: dict[int, Oracle] = {}
        with torch.no_grad():
            x = self.weights["model.embed_tokens.weight"][torch.tensor(list(tokens), dtype=torch.long)]
            for il in range(len(self.config.layers)):
                prefix = f"model.layers.{il}."
                normed = rms_norm(x, self.weights[prefix + "input_layernorm.weight"], eps)
                trace.put(f"attn_norm-{il}", normed)
                heads = self._attention(il, normed, oracles, (selections or {}).get(il), trace)
                attn_out = self._linear(prefix + "self_attn.o_proj", heads.reshape(len(x), -1))
                trace.put(f"attn_out-{il}", attn_out)
                x = x + attn_out
                normed = rms_norm(x, self.weights[prefix + "post_attention_layernorm.weight"], eps)
                ffn_out = self._ffn(il, normed, (experts or {}).get(il), trace)
                trace.put(f"ffn_out-{il}", ffn_out)
                x = x + ffn_out
                trace.put(f"l_out-{il}", x)
            x = rms_norm(x, self.weights["model.norm.weight"], eps)
            trace.put("result_norm", x)
            return linear(x, self.weights["model.embed_tokens.weight" if self.config.tie_word_embeddings else "lm_head.weight"])

    def margins(self, trace: Trace) -> torch.Tensor:
        """Smallest selection margin of each token over all full layers that emit scores [n_tokens]; inf where nothing was left out."""
        per_layer = [attention.selection_margin(s, self.config.top_k).amin(0) for s in trace.scores.values()]
        return torch.stack(per_layer).amin(0) if per_layer else torch.full((1,), float("inf"))


class OracleLlama(HySparseForCausalLM):
    """Oracle mode (SPEC 5, training-free) over stock Llama, Qwen2 or Qwen3 weights."""

    @classmethod
    def from_stock(cls, checkpoint: str | Path, full_layers: list[int], *, block_size: int = 64, top_k_tokens: int = 1024,
                   window: int = 128, dtype: torch.dtype = torch.float32) -> OracleLlama:
        """full_layers: ascending, starting with 0; the others read the selection of the nearest full layer above and their own keys."""
        config = with_oracle(load_config(Path(checkpoint)), full_layers, block_size, top_k_tokens, window)
        return cls(config, load_weights(Path(checkpoint)), dtype)


def nmse(x: torch.Tensor, reference: torch.Tensor) -> float:
    """sum (x - ref)^2 / sum ref^2 (SPEC 8)."""
    reference = reference.double()
    return float((x.double() - reference).square().sum() / reference.square().sum())
