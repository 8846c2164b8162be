"""The ops on a device: the groups that bench/cuda.py gives to op_runner, and what their times mean."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["BIG", "Lengths", "OpRow", "groups", "op_rows", "run_ops", "spec"]


@dataclass(frozen=True)
class Lengths:
    """The shapes of the table; `small` tries the scripts where there is no device."""

    prefill: int = 8192
    long: int = 131072
    longest: int = 1048576
    short: int = 4096
    heads: str = "32/8x128"
    heads_80b: str = "64/4x128"


BIG = Lengths()
SMALL = Lengths(64, 2048, 4096, 1200, "4/2x64", "8/1x64")


@dataclass(frozen=True)
class OpRow:
    """One timed node. floor: its least time (bytes at the read rate, operations at the matrix rate) over its time."""

    spec: str
    us: float
    gb_per_s: float
    tflop_per_s: float
    floor: float
    ratio: float | None  # the last node's (the peer's) time over this one's, in groups that end with "flash"
    nmse: float | None
    round_us: list[float]


def spec(kind: str, heads: str, at: str, cache: str = "f16") -> str:
    return f"{kind} {cache} {heads} {at}"


def against_ggml(heads: str, at: str, cache: str = "f16") -> str:
    return " | ".join(spec(kind, heads, at, cache) for kind in ("full", "full-noscores", "flash"))


def groups(n: Lengths) -> list[str]:
    """The issue's rows first, then the same at 64/4 heads and with q8_0 caches."""
    prefill, decode, sparse = f"{n.prefill}@{n.prefill}", f"1@{n.long}", f"{n.prefill}@{n.long}"
    out = [against_ggml(n.heads, prefill), against_ggml(n.heads, decode), spec("select", n.heads, decode, "f32")]
    out.append(" | ".join(spec("sparse", n.heads, f"1@{keys}") for keys in (n.short, n.long, n.longest)))
    out.append(" | ".join(spec(kind, n.heads, sparse) for kind in ("sparse", "sparse-random")))
    for heads, cache in ((n.heads_80b, "f16"), (n.heads, "q8_0")):
        out += [against_ggml(heads, prefill, cache), against_ggml(heads, decode, cache)]
        out.append(" | ".join(spec("sparse", heads, at, cache) for at in (f"1@{n.long}", sparse)))
    out.append(" | ".join(spec("window", n.heads, f"{new}@{n.prefill}") for new in (1, n.prefill)))
    return out


def run_ops(runner: Path, backend: str, wanted: list[str], rounds: int, limit_s: float) -> list[dict[str, Any]]:
    """op_runner's groups, as it prints them. What it does not finish in limit_s is an {"error"} of its group."""
    done: list[dict[str, Any]] = []
    command = [str(runner), "perf", "--json", "-b", backend, "--rounds", str(rounds), *wanted]
    with subprocess.Popen(["timeout", f"{max(limit_s, 1):.0f}", *command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                item = json.loads(line)
            except ValueError:
                continue  # cut off
            if "group" in item:
                done.append(item)
                print(f"  {len(done)}/{len(wanted)} {item['group']}", file=sys.stderr, flush=True)
    missing = [g for g in wanted if g not in {item["group"] for item in done}]
    return done + [{"group": g, "error": f"op_runner ended with {process.returncode} before it"} for g in missing]


def op_rows(measured: list[dict[str, Any]], read_rate: float, matrix_rate: float) -> dict[str, OpRow]:
    """Rows by spec. read_rate: bytes a second, matrix_rate: operations a second (NaN: floors are NaN)."""
    rows: dict[str, OpRow] = {}
    for group in measured:
        nodes = group.get("nodes", [])
        peer = nodes[-1]["us"] if nodes and nodes[-1]["spec"].startswith("flash") else None
        for node in nodes:
            us = statistics.median(node["us"])
            least = max(node["bytes"] / read_rate, node["flops"] / matrix_rate) * 1e6
            ratio = statistics.median(p / u for p, u in zip(peer, node["us"], strict=True)) if peer else None
            speed = node["bytes"] / us * 1e-3, node["flops"] / us * 1e-6
            rows[node["spec"]] = OpRow(node["spec"], us, *speed, least / us, ratio, node["nmse"], node["us"])
    return rows
