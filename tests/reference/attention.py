"""The attention of SPEC 3 to 5, eager: whole score matrices and masks, so that each line is one line of the specification.

Shapes: q [n_tokens, n_head, d_qk], k [n_tokens, n_head_kv, d_qk], v [n_tokens, n_head_kv, d_v]; outputs [n_tokens, n_head, d_v].
A `visible` mask is bool [n_head or n_head_kv or 1, n_tokens (query), n_tokens (key)].
"""
from __future__ import annotations

import torch


def repeat_heads(x: torch.Tensor, n_head: int, dim: int) -> torch.Tensor:
    """Query head h reads KV head h // (n_head / n_head_kv)."""
    return x.repeat_interleave(n_head // x.shape[dim], dim=dim)


def causal(n: int) -> torch.Tensor:
    """j <= t."""
    return torch.ones(n, n, dtype=torch.bool).tril()[None]


def in_window(n: int, window: int) -> torch.Tensor:
    """t - w < j <= t: the window counts the current token."""
    return causal(n) & torch.ones(n, n, dtype=torch.bool).triu(1 - window)[None]


def logits(q: torch.Tensor, k: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """a[h,t,j] = q[h,t] . k[g(h),j] / sqrt(d), -inf where not visible."""
    n_head = q.shape[1]
    a = torch.einsum("thd,jhd->htj", q, repeat_heads(k, n_head, 1)) * q.shape[-1] ** -0.5
    if visible.shape[0] not in (1, n_head):
        visible = repeat_heads(visible, n_head, 0)
    return torch.where(visible, a, float("-inf"))


def log_denominator(a: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """L[h,t] = log(sum_j exp a[h,t,j] (+ exp z_h))."""
    if sinks is not None:
        a = torch.cat([a, sinks.to(a.dtype)[:, None, None].expand(-1, a.shape[1], 1)], dim=-1)
    return torch.logsumexp(a, dim=-1)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor,
           sinks: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention over the visible keys. Returns (output, log-probabilities a - L [n_head, n_tokens, n_tokens])."""
    a = logits(q, k, visible)
    log_p = a - log_denominator(a, sinks)[..., None]
    return torch.einsum("htj,jhd->thd", log_p.exp(), repeat_heads(v, q.shape[1], 1)), log_p


def block_scores(log_p: torch.Tensor, n_head_kv: int, block_size: int) -> torch.Tensor:
    """S[g,t,i] = max over the heads of group g and the visible keys of block i of log p; -inf where block i is not visible."""
    n_head, n, _ = log_p.shape
    n_blocks = -(-n // block_size)
    padded = torch.nn.functional.pad(log_p, (0, n_blocks * block_size - n), value=float("-inf"))
    per_head = padded.reshape(n_head, n, n_blocks, block_size).amax(-1)
    return per_head.reshape(n_head_kv, n_head // n_head_kv, n, n_blocks).amax(1)


def select_blocks(scores: torch.Tensor, top_k: int) -> torch.Tensor:
    """I[g,t] as bool [n_head_kv, n_tokens, n_blocks]: the top_k largest visible scores, ties to the lower block."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]  # stable: equal scores keep ascending block order
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, True)
    return chosen & (scores > float("-inf"))


def selection_margin(scores: torch.Tensor, top_k: int) -> torch.Tensor:
    """Score distance between the last block selected and the first left out [n_head_kv, n_tokens]; inf where none is left out.

    Two implementations may select differently where this is within their rounding (SPEC 8).
    """
    if scores.shape[-1] <= top_k:
        return torch.full(scores.shape[:2], float("inf"), dtype=scores.dtype)
    ranked = scores.sort(dim=-1, descending=True).values
    left_out = ranked[..., top_k]
    return torch.where(left_out.isinf(), torch.inf, ranked[..., top_k - 1] - left_out)


def selected_keys(selection: torch.Tensor, n: int, block_size: int) -> torch.Tensor:
    """Keys of the selected blocks that the query sees: bool [n_head_kv, n_tokens, n_tokens]."""
    return selection.repeat_interleave(block_size, dim=-1)[..., :n] & causal(n)


def forced_keys(selection: torch.Tensor, n: int, block_size: int, window: int) -> torch.Tensor:
    """Oracle mode (SPEC 5): selected blocks, block 0 and the last w positions, each position once."""
    block_0 = causal(n) & (torch.arange(n) < block_size)
    return selected_keys(selection, n, block_size) | block_0 | in_window(n, window)
