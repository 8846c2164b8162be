"""From the times of bench/vs_llamacpp.py to tables, with the targets (docs/performance.md) beside what was reached.

Ratios are the peer's time over ours: medians over rounds of the ratio within a round.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from checks import Check
from ladder import PEER, SLICE

__all__ = ["FirstTokenRow", "Row", "first_token_markdown", "first_token_rows", "markdown", "rows_of"]

# (comparison, engine, depth): what is asked, in times the peer's speed
PROMPT_TARGETS = {("demo", "full", 512): 1.0, ("demo", "full", 2048): 1.1, ("demo", "full", 6000): 1.3, ("shape", "hysparse", 16384): 2.0}
PROMPT_AIMS = {("demo", "full", 6000): 1.5, ("shape", "hysparse", 16384): 3.0}
DECODE_TARGETS = {
    ("demo", "full", 512): 1.05, ("demo", "full", 2048): 1.6, ("demo", "full", 6000): 3.0, ("demo", "oracle", 6000): 5.0,
    ("shape", "hysparse", 16384): 2.5,
}  # fmt: skip
DECODE_AIMS = {("shape", "hysparse", 16384): 4.0}
FLAT = ("demo", "oracle", 6000, 1000, 1.25)  # a token at the first depth against one at the second
FIRST_TOKEN_SECONDS = 0.3


@dataclass(frozen=True)
class Row:
    """One engine at one depth. Speeds in tokens a second (medians), each with its ratio to llama.cpp's."""

    comparison: str
    engine: str
    depth: int
    rounds: int  # of pp and tg
    prompt_rounds: int
    prompt: float  # the whole prompt up to the depth, from empty
    prompt_ratio: float
    pp: float  # SLICE more tokens at the depth
    pp_ratio: float
    tg: float  # one by one at the depth
    tg_ratio: float
    cache_bytes: int
    checks: list[Check] = field(default_factory=list)


@dataclass(frozen=True)
class FirstTokenRow:
    """Seconds from opening the file to the first logits (median)."""

    way: str
    seconds: float
    ratio: float
    rounds: int
    checks: list[Check] = field(default_factory=list)


def ratio(peer: list[float], mine: list[float]) -> float:
    return float(statistics.median(p / m for p, m in zip(peer, mine, strict=True)))


def rows_of(name: str, measured: dict[str, Any], n_decode: int) -> list[Row]:
    """Rows of a comparison: measured as saved, {"climbs": [what Ladder.climb returns, the first with "at"]}."""
    climbs = measured["climbs"]
    at = climbs[0]["at"]
    rows = []
    for depth, cell in at.items():
        prompts = {engine: [climb["prompt"][depth][engine] for climb in climbs] for engine in cell}
        for engine, mine in cell.items():
            peer = cell[PEER]
            row = Row(
                name, engine, int(depth), len(mine["tg"]), len(climbs),
                int(depth) / statistics.median(prompts[engine]), ratio(prompts[PEER], prompts[engine]),
                SLICE / statistics.median(mine["pp"]), ratio(peer["pp"], mine["pp"]),
                n_decode / statistics.median(mine["tg"]), ratio(peer["tg"], mine["tg"]), mine["bytes"],
            )  # fmt: skip
            rows.append(Row(**{**vars(row), "checks": checks(row, at)}))
    return rows


def checks(r: Row, at: dict[str, Any]) -> list[Check]:
    key = (r.comparison, r.engine, r.depth)
    out = []
    for what, value, targets in (
        ("prompt", r.prompt_ratio, PROMPT_TARGETS), ("aim: prompt", r.prompt_ratio, PROMPT_AIMS),
        ("tg", r.tg_ratio, DECODE_TARGETS), ("aim: tg", r.tg_ratio, DECODE_AIMS),
    ):  # fmt: skip
        if key in targets:
            out.append(Check(what, value, "at least", targets[key], "x"))
    if key == FLAT[:3] and str(FLAT[3]) in at:
        slower = ratio(at[str(r.depth)][r.engine]["tg"], at[str(FLAT[3])][r.engine]["tg"])
        out.append(Check(f"tg time against depth {FLAT[3]}", slower, "at most", FLAT[4], "x"))
    return out


def first_token_rows(samples: dict[str, list[float]]) -> list[FirstTokenRow]:
    rows = []
    for way, seconds in samples.items():
        against, median = ratio(samples[PEER], seconds), statistics.median(seconds)
        wanted = [Check("peer", against, "at least", 1.0, "x"), Check("aim", median, "at most", FIRST_TOKEN_SECONDS, "s")]
        rows.append(FirstTokenRow(way, median, against, len(seconds), [] if way == PEER else wanted))
    return rows


def markdown(rows: list[Row], n_decode: int) -> str:
    header = ["model", "depth", "engine", "prompt t/s", f"pp{SLICE} @ depth t/s", f"tg{n_decode} @ depth t/s", "cache MiB", "targets"]
    lines = ["| " + " | ".join(header) + " |", "|---|--:|---|--:|--:|--:|--:|---|"]
    for r in rows:
        speeds = (f"{r.prompt:.0f} ({r.prompt_ratio:.2f}x)", f"{r.pp:.0f} ({r.pp_ratio:.2f}x)", f"{r.tg:.1f} ({r.tg_ratio:.2f}x)")
        cells = [r.comparison, str(r.depth), r.engine, *speeds, f"{r.cache_bytes / 2**20:.1f}", "; ".join(map(str, r.checks))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def first_token_markdown(rows: list[FirstTokenRow]) -> str:
    lines = ["| opening the file to the first logits | seconds | ratio | targets |", "|---|--:|--:|---|"]
    lines += [f"| {r.way} | {r.seconds:.3f} | {r.ratio:.2f}x | {'; '.join(map(str, r.checks))} |" for r in rows]
    return "\n".join(lines)
