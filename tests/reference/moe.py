"""Feed-forward layers: SwiGLU, and mixture of experts with the routing of DeepSeek-V3 / MiMo-V2 (sigmoid) or Qwen3-MoE (softmax)."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import linear, silu

from reference.config import MoeConfig

Weight = Callable[[str], torch.Tensor]


def swiglu(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """down(silu(gate x) * up x)."""
    return linear(silu(linear(x, gate)) * linear(x, up), down)


def mlp(x: torch.Tensor, weight: Weight, prefix: str = "") -> torch.Tensor:
    """SwiGLU with the weights `prefix`{gate,up,down}_proj.weight."""
    return swiglu(x, *(weight(f"{prefix}{name}_proj.weight") for name in ("gate", "up", "down")))


def group_scores(choice: torch.Tensor, moe: MoeConfig) -> torch.Tensor:
    """What groups are ranked by [n_tokens, n_group]: the sum of their two best experts."""
    return choice.reshape(len(choice), moe.n_group, -1).topk(2, dim=-1).values.sum(-1)


def within_groups(choice: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """`choice` with -inf for the experts outside `groups` (bool [n_tokens, n_group])."""
    return choice.masked_fill(~groups.repeat_interleave(choice.shape[1] // groups.shape[1], dim=1), float("-inf"))


def raw_scores(router_logits: torch.Tensor, moe: MoeConfig) -> torch.Tensor:
    """Sigmoid or softmax of the router's logits [n_tokens, n_expert]."""
    return router_logits.sigmoid() if moe.scoring_func == "sigmoid" else router_logits.softmax(-1)


def route(router_logits: torch.Tensor, bias: torch.Tensor | None, moe: MoeConfig,
          given: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(experts int64 [n_tokens, n_expert_used], weights likewise): the bias chooses experts but does not weigh them."""
    scores = raw_scores(router_logits, moe)
    choice = scores if bias is None else scores + bias
    if moe.n_group > 1:
        kept = group_scores(choice, moe).topk(moe.topk_group, dim=-1).indices
        choice = within_groups(choice, torch.zeros(len(choice), moe.n_group, dtype=torch.bool).scatter(1, kept, True))
    experts = choice.topk(moe.n_expert_used, dim=-1).indices if given is None else given
    weights = scores.gather(1, experts)
    if moe.norm_topk_prob:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return experts, weights * moe.routed_scaling_factor


def expert_weights(weight: Weight, has: Callable[[str], bool], e: int, n_ff: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(gate, up, down) of expert e from either of the two layouts of SPEC 6."""
    if has("experts.gate_up_proj"):
        gate_up = weight("experts.gate_up_proj")[e]
        return gate_up[:n_ff], gate_up[n_ff:], weight("experts.down_proj")[e]
    return (weight(f"experts.{e}.gate_proj.weight"), weight(f"experts.{e}.up_proj.weight"), weight(f"experts.{e}.down_proj.weight"))


def moe_mlp(x: torch.Tensor, weight: Weight, has: Callable[[str], bool], moe: MoeConfig,
            given: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixture of experts on x [n_tokens, n_embd]; shared experts are added unweighted.

    given: experts int64 [n_tokens, n_expert_used] to use instead of the router's own. Also returns what experts are ranked by: their
    scores plus the correction bias [n_tokens, n_expert].
    """
    bias = weight("gate.e_score_correction_bias") if has("gate.e_score_correction_bias") else None
    router_logits = linear(x, weight("gate.weight"))
    experts, weights = route(router_logits, bias, moe, given)
    out = torch.zeros_like(x)
    for e in sorted(set(experts.flatten().tolist())):
        token, slot = torch.where(experts == e)
        out[token] += weights[token, slot, None] * swiglu(x[token], *expert_weights(weight, has, e, moe.n_ff))
    if moe.n_shared:
        out = out + mlp(x, weight, "shared_experts.")
    scores = raw_scores(router_logits, moe)
    return out, scores if bias is None else scores + bias
