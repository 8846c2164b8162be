"""Comparing the runtime with the reference (SPEC 8): NMSE, greedy tokens, and choices (blocks, experts) with the rule for near-ties."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from reference.config import MoeConfig
from reference.model import HySparseForCausalLM, Trace, nmse
from reference.moe import group_scores, within_groups

GREEDY_TIE = 1e-3  # two logits nearer than this are a tie: either token is the greedy one


def assert_close(ours: torch.Tensor, reference: torch.Tensor, tolerance: float, what: str = "logits") -> None:
    """NMSE <= tolerance over all rows, and no row far worse than that."""
    assert ours.shape == reference.shape, f"{what}: shape {tuple(ours.shape)}, expected {tuple(reference.shape)}"
    assert bool(torch.isfinite(ours).all()), f"{what}: not finite"
    error = nmse(ours, reference)
    rows = (ours.double() - reference.double()).square().sum(-1) / reference.double().square().sum(-1).clamp_min(1e-30)
    worst = int(rows.argmax())
    found = f"{what}: NMSE {error:.2e}, worst row {worst} of {len(rows)} {float(rows[worst]):.2e}, expected <= {tolerance:.0e}"
    assert error <= tolerance and float(rows[worst]) <= 100 * tolerance, found


def assert_same_greedy(ours: torch.Tensor, reference: torch.Tensor) -> None:
    """The same argmax in every row, but for rows whose two best reference logits are a tie (few)."""
    best = reference.topk(2, dim=-1).values
    clear = best[:, 0] - best[:, 1] > GREEDY_TIE
    assert float(clear.float().mean()) > 0.95, "too many ties: the comparison would say little"
    different = (ours.argmax(-1) != reference.argmax(-1)) & clear
    assert not bool(different.any()), f"greedy token differs at positions {different.nonzero().flatten().tolist()}"


@dataclass
class NodeRecorder:
    """A capture function that collects the named nodes of all ubatches of one sequence, rows [n_tokens, ...] in token order."""

    wanted: tuple[str, ...]  # names without the layer's number
    parts: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def __call__(self, name: str, values: np.ndarray[Any, Any]) -> bool:
        if name.rsplit("-", 1)[0] in self.wanted or name in self.wanted:
            n_dims = 3 if name.startswith("selection") else 2
            self.parts.setdefault(name, []).append(torch.from_numpy(values.reshape(values.shape[4 - n_dims:])))
        return True

    def nodes(self) -> dict[str, torch.Tensor]:
        """Each node over the whole sequence."""
        return {name: torch.cat(parts) for name, parts in self.parts.items()}


def selection_mask(node: torch.Tensor, n_blocks: int) -> torch.Tensor:
    """The runtime's block ids [n_tokens, n_head_kv, top_k] (-1: none) as bool [n_head_kv, n_tokens, n_blocks]."""
    ids = node.to(torch.int64).transpose(0, 1)
    mask = torch.zeros(*ids.shape[:2], n_blocks + 1, dtype=torch.bool).scatter(-1, torch.where(ids < 0, n_blocks, ids), True)
    return mask[..., :n_blocks]


def check_choice(chosen: torch.Tensor, scores: torch.Tensor, tie: float, what: str) -> int:
    """`chosen` (bool, like scores) must be the best of each row, up to swaps of scores closer than `tie`. Returns the swaps."""
    count = chosen.sum(-1, keepdim=True)
    ranked = scores.sort(dim=-1, descending=True).values
    expected = torch.minimum(count, torch.isfinite(scores).sum(-1, keepdim=True))
    assert torch.equal(count, expected), f"{what}: an entry that is not visible was chosen"
    threshold = ranked.gather(-1, (count - 1).clamp_min(0))  # the worst score that belongs in the choice
    swapped_in = chosen & (scores < threshold)
    distance = torch.where(swapped_in, threshold - scores, 0.0)
    assert float(distance.max()) <= tie, f"{what}: a score {float(distance.max()):.2e} below the best was chosen, expected <= {tie:.0e}"
    return int(swapped_in.sum())


def check_experts(chosen: torch.Tensor, choice: torch.Tensor, moe: MoeConfig, tie: float, what: str) -> int:
    """check_choice for experts (bool [n_tokens, n_expert]); with groups, a group too may have been swapped for one that scores as well."""
    if moe.topk_group < moe.n_group:
        scores = group_scores(choice, moe)
        ranked = scores.sort(dim=-1, descending=True).values
        used = chosen.reshape(len(chosen), moe.n_group, -1).any(-1)
        assert int(used.sum(-1).max()) <= moe.topk_group, f"{what}: experts of more than {moe.topk_group} groups"
        lacking = torch.where(used, ranked[:, moe.topk_group - 1, None] - scores, 0.0)
        assert float(lacking.max()) <= tie, f"{what}: an expert of a group {float(lacking.max()):.2e} below the best groups"
        certain = scores > ranked[:, moe.topk_group, None] + tie
        choice = within_groups(choice, used | certain)
    return check_choice(chosen, choice, tie, what)


def reference_with_choices_of(nodes: dict[str, torch.Tensor], model: HySparseForCausalLM, tokens: Sequence[int],
                              tie: float) -> tuple[torch.Tensor, Trace, int]:
    """Reference logits and trace under the runtime's own block and expert choices, after checking that these are right up to near-ties.

    nodes: from a NodeRecorder of "selection" and "ffn_moe_topk". Returns also how many choices differ.
    """
    n_blocks = -(-len(tokens) // model.config.block_size)
    selections = {int(name.rsplit("-", 1)[1]): selection_mask(x, n_blocks) for name, x in nodes.items() if name.startswith("selection-")}
    experts = {int(name.rsplit("-", 1)[1]): x.to(torch.int64) for name, x in nodes.items() if name.startswith("ffn_moe_topk-")}
    trace = Trace()
    logits = model.forward(tokens, trace, selections, experts)
    assert selections.keys() == trace.scores.keys(), f"selections of layers {sorted(selections)}, expected {sorted(trace.scores)}"
    assert experts.keys() == trace.choices.keys(), f"experts of layers {sorted(experts)}, expected {sorted(trace.choices)}"
    swaps = 0
    for il, mask in selections.items():
        visible = torch.isfinite(trace.scores[il]).sum(-1)
        assert torch.equal(mask.sum(-1), visible.clamp_max(model.config.top_k)), f"selection-{il}: wrong number of blocks"
        swaps += check_choice(mask, trace.scores[il], tie, f"selection-{il}")
    for il, ids in experts.items():
        mask = torch.zeros_like(trace.choices[il], dtype=torch.bool).scatter(-1, ids, True)
        assert bool((mask.sum(-1) == ids.shape[-1]).all()), f"ffn_moe_topk-{il}: an expert twice"
        assert model.config.moe is not None
        swaps += check_experts(mask, trace.choices[il], model.config.moe, tie, f"ffn_moe_topk-{il}")
    return logits, trace, swaps
