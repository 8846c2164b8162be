"""From op_runner's times to rows of a table, with the targets (docs/performance.md) beside what was reached.

Ratios are medians over rounds of the ratio within a round, never ratios of medians.
"""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass, field
from typing import Any

from checks import Check

__all__ = ["OpRow", "markdown", "rows_of_group"]

SPEC = re.compile(r"(?P<kind>\S+) (?P<type>\S+) (?P<heads>\d+/\d+)x(?P<d>\d+) (?P<new>\d+)@(?P<keys>\d+)")
Node = dict[str, Any]


@dataclass(frozen=True)
class OpRow:
    """One node of ours. Times in microseconds (medians); ratios are medians of the rounds' ratios."""

    spec: str
    us: float
    peer_us: float | None
    peer_ratio: float | None  # the peer's time over ours
    scores_cost: float | None  # percent: with scores over without, minus 1
    rate: float
    rate_unit: str  # "GB/s" of what must be read, for one query; "GFLOP/s" of the work done, for more
    floor_us: float
    floor_kind: str  # "read" or "fma"
    over_floor: float
    nmse: float | None  # the peer's result against ours
    checks: list[Check] = field(default_factory=list)


def ratio(a: Node, b: Node) -> float:
    """Median over rounds of a's time over b's."""
    return float(statistics.median(x / y for x, y in zip(a["us"], b["us"], strict=True)))


def parts(node: Node) -> dict[str, str]:
    match = SPEC.fullmatch(node["spec"])
    if match is None:
        raise ValueError(f"spec {node['spec']!r} is not of the form 'KIND TYPE H/KVxD NEW@KEYS'")
    return match.groupdict()


def partner(node: Node, nodes: list[Node], kind: str) -> Node | None:
    """The node of that kind on the same inputs."""
    mine = {**parts(node), "kind": kind}
    return next((other for other in nodes if parts(other) == mine), None)


def rows_of_group(nodes: list[Node], targets: bool) -> list[OpRow]:
    """A row for every node of ours but those without scores, which are part of their partner's row. targets: with checks."""
    return [row(node, nodes, targets) for node in nodes if parts(node)["kind"] not in ("flash", "full-noscores")]


def row(node: Node, nodes: list[Node], targets: bool) -> OpRow:
    p = parts(node)
    us = statistics.median(node["us"])
    peer = partner(node, nodes, "flash") if p["kind"] == "full" else None
    without = partner(node, nodes, "full-noscores") if p["kind"] == "full" else None
    by_bytes = p["new"] == "1" or node["flops"] == 0
    floor_us, floor_kind = max((node["read_us"], "read"), (node["fma_us"], "fma"))
    out = OpRow(
        node["spec"], us,
        statistics.median(peer["us"]) if peer else None, ratio(peer, node) if peer else None,
        100 * (ratio(node, without) - 1) if without else None,
        (node["bytes"] if by_bytes else node["flops"]) / us * 1e-3, "GB/s" if by_bytes else "GFLOP/s",
        floor_us, floor_kind, us / floor_us, peer["nmse"] if peer else None,
    )  # fmt: skip
    return OpRow(**{**vars(out), "checks": checks(node, nodes, out)}) if targets else out


def checks(node: Node, nodes: list[Node], r: OpRow) -> list[Check]:
    """The targets of this row: asked of every length and type, not only of those in the list of targets."""
    p = parts(node)
    one = p["new"] == "1"
    out = []
    if r.peer_ratio is not None:
        out.append(Check("peer", r.peer_ratio, "at least", 2.0 if one else 1.0, "x"))
    if r.scores_cost is not None:
        out.append(Check("scores", r.scores_cost, "at most", 5.0, "%"))
    if p["kind"].startswith("sparse"):
        if one and node is not nodes[0]:
            out.append(Check("time against " + nodes[0]["spec"].split()[-1], ratio(node, nodes[0]), "at most", 1.1, "x"))
        for full in nodes:
            if not one and parts(full)["kind"] == "full":
                relative = ratio(full, node) * node["flops"] / full["flops"]
                out.append(Check("GFLOP/s against full " + full["spec"].split()[-1], relative, "at least", 0.5, "x"))
    if one and p["kind"] in ("full", "sparse"):
        out.append(Check("aim: time against the floor", r.over_floor, "at most", 1.2, "x"))
    elif r.peer_ratio is not None:
        out.append(Check("aim: peer", r.peer_ratio, "at least", 1.5, "x"))
    return out


def markdown(rows: list[OpRow]) -> str:
    lines = [
        "| op, cache, heads x dim, queries@keys | ours µs | ggml µs | ratio | scores | rate | floor µs | ours/floor | targets |",
        "|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for r in rows:
        peer = (f"{r.peer_us:,.0f}", f"{r.peer_ratio:.2f}x") if r.peer_us is not None else ("", "")
        scores = f"{r.scores_cost:+.1f} %" if r.scores_cost is not None else ""
        floor = (f"{r.floor_us:,.1f} ({r.floor_kind})", f"{r.over_floor:.2f}" if r.floor_us >= 1 else "")  # below, starting a graph is all
        us = f"{r.us:,.1f}" if r.us < 100 else f"{r.us:,.0f}"
        cells = [r.spec, us, *peer, scores, f"{r.rate:,.1f} {r.rate_unit}", *floor, "; ".join(map(str, r.checks))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
