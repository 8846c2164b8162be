"""Prompt and generation speed over the length of the context, ours against llama.cpp, and the bytes of the caches.

    python bench/context.py [--quick] [--rounds 5] [--dir FOLDER] [--results FILE] [-o md|json|csv]

Two comparisons, same threads, f16 caches, flash attention on in llama.cpp (llama-cpp-python), random token ids:
  demo   SmolLM2-135M-Instruct Q4_1, one GGUF for all: ours full, ours oracle, llama.cpp; depths 512, 2048, 6000
  shape  16 layers, 16/4 heads of 128, width 1024, Q8_0 random weights: ours as HySparse (full layers 0,4,8,12,15), ours full and llama.cpp
         with full attention everywhere (a `llama` GGUF of the same shape); depths 4096, 16384
The engines (each in a process of its own) climb the ladder together: all take the same slice of 512 tokens in turn until a depth is
reached, so that they see the same state of the machine. There, --rounds times and in turn: a prompt of 512 more tokens, rewind, 32 tokens
one by one, rewind (llama-bench's pp512 and tg32 @ depth). The table has the speed of the whole prompt up to the depth (one pass,
interleaved), the medians of the rounds, and the medians of their ratios to llama.cpp. A comparison that is finished is kept in --results
and not run again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from engines import EngineSpec, Worker
from machine import facts, facts_line
from make_random_gguf import PRESETS, write_random_gguf

from pyhysparse.demo import demo_model

SLICE = 512
PEER = "llama.cpp"


@dataclass(frozen=True)
class Comparison:
    """Engines (name, GGUF, oracle mode) on a ladder of depths."""

    name: str
    engines: tuple[tuple[str, Path, bool], ...]
    depths: tuple[int, ...]
    n_vocab: int


@dataclass(frozen=True)
class Row:
    """One engine at one depth. Speeds in tokens a second, each with its ratio to llama.cpp's."""

    comparison: str
    engine: str
    depth: int
    rounds: int
    prompt: float  # the whole prompt up to the depth
    prompt_ratio: float
    pp: float  # SLICE more tokens at the depth; median of rounds, and median of the rounds' ratios
    pp_ratio: float
    tg: float  # one by one at the depth
    tg_ratio: float
    cache_bytes: int


def comparisons(which: list[str], folder: Path, quick: bool) -> list[Comparison]:
    """What to run; makes the random models that are missing in `folder`."""
    out = []
    if "demo" in which:
        demo = demo_model()
        engines = (("full", demo, False), ("oracle", demo, True), (PEER, demo, False))
        out.append(Comparison("demo", engines, (512, 2048) if quick else (512, 2048, 6000), 49152))
    if "shape" in which:
        shape = PRESETS["16-layer"]
        paths = {arch: folder / f"shape-{arch}.gguf" for arch in ("hysparse", "llama")}
        for arch, path in paths.items():
            if not path.exists():
                write_random_gguf(path, shape, arch)
        engines = (("hysparse", paths["hysparse"], False), ("full", paths["llama"], False), (PEER, paths["llama"], False))
        out.append(Comparison("shape", engines, (2048,) if quick else (4096, 16384), shape.n_vocab))
    return out


def climb(workers: dict[str, Worker], c: Comparison, rounds: int, n_decode: int) -> dict[str, Any]:
    """{depth: {engine: {"prompt": s, "pp": [s a round], "tg": [s a round], "bytes": n}}}, and "nmse": logit_errors at the first depth."""
    random = np.random.default_rng(1)
    tokens = random.integers(0, c.n_vocab, max(c.depths) + SLICE, dtype=np.int32)
    out: dict[str, Any] = {}
    seconds = dict.fromkeys(workers, 0.0)
    order = list(workers)
    at = 0
    for depth in c.depths:
        while at < depth:
            part = tokens[at : min(at + SLICE, depth)]
            for name in order:
                seconds[name] += workers[name].eval(part)
            at += len(part)
            order.reverse()
        if "nmse" not in out:
            out["nmse"] = logit_errors(workers)
        cell: dict[str, Any] = {}
        for name, worker in workers.items():
            cell[name] = {"prompt": seconds[name], "bytes": worker.cache_bytes(), "pp": [], "tg": []}
            worker.decode(tokens[:2])  # the first one after a prompt builds another graph
            worker.rewind(depth)
        for _ in range(rounds):
            for name in order:
                cell[name]["pp"].append(workers[name].eval(tokens[depth : depth + SLICE]))
                workers[name].rewind(depth)
            for name in order:
                cell[name]["tg"].append(workers[name].decode(tokens[depth : depth + n_decode]))
                workers[name].rewind(depth)
            order.reverse()
        out[str(depth)] = cell
        print(f"{c.name}: depth {depth} done", file=sys.stderr, flush=True)
    return out


def logit_errors(workers: dict[str, Worker]) -> dict[str, float]:
    """NMSE of the last logits against llama.cpp's: that both sides do the same work (0.0 when there is no peer)."""
    rows = {name: worker.logits().astype(np.float64) for name, worker in workers.items()}
    base = rows.get(PEER)
    return {} if base is None else {name: float(((row - base) ** 2).sum() / (base**2).sum()) for name, row in rows.items() if name != PEER}


def run(c: Comparison, rounds: int, n_threads: int, n_decode: int) -> dict[str, Any]:
    """Start the engines, climb, end them."""
    workers: dict[str, Worker] = {}
    try:
        for name, gguf, oracle in c.engines:
            workers[name] = Worker(EngineSpec(name, str(gguf), max(c.depths) + max(SLICE, n_decode) + 64, SLICE, n_threads, oracle))
            workers[name].eval(np.arange(64, dtype=np.int32))  # touch the weights
            workers[name].rewind(0)
        return climb(workers, c, rounds, n_decode)
    finally:
        for worker in workers.values():
            worker.close()


def save(path: Path, results: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(temporary, path)


def rows_of(c: Comparison, measured: dict[str, Any], n_decode: int) -> list[Row]:
    rows = []
    for depth in c.depths:
        cell = measured[str(depth)]
        peer = cell[PEER]
        for name, _, _ in c.engines:
            mine = cell[name]
            medians = {kind: statistics.median(mine[kind]) for kind in ("pp", "tg")}
            ratios = {kind: statistics.median(p / m for m, p in zip(mine[kind], peer[kind], strict=True)) for kind in ("pp", "tg")}
            rows.append(Row(
                c.name, name, depth, len(mine["pp"]), depth / mine["prompt"], peer["prompt"] / mine["prompt"],
                SLICE / medians["pp"], ratios["pp"], n_decode / medians["tg"], ratios["tg"], mine["bytes"],
            ))  # fmt: skip
    return rows


def markdown(rows: list[Row], n_decode: int) -> str:
    header = ["model", "depth", "engine", "prompt t/s", f"pp{SLICE} @ depth t/s", f"tg{n_decode} @ depth t/s", "cache MiB"]
    lines = ["| " + " | ".join(header) + " |", "|---|--:|---|--:|--:|--:|--:|"]
    for r in rows:
        speeds = (f"{r.prompt:.0f} ({r.prompt_ratio:.2f}x)", f"{r.pp:.0f} ({r.pp_ratio:.2f}x)", f"{r.tg:.1f} ({r.tg_ratio:.2f}x)")
        lines.append("| " + " | ".join([r.comparison, str(r.depth), r.engine, *speeds, f"{r.cache_bytes / 2**20:.1f}"]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="one round, short contexts: does it work?")
    parser.add_argument("--rounds", type=int, default=5, help="measurements at each depth (5)")
    parser.add_argument("--only", choices=("demo", "shape"), help="one of the two comparisons")
    parser.add_argument("--threads", type=int, default=0, help="of both sides (0: the cores this process may use)")
    parser.add_argument("--n-decode", type=int, default=32, help="tokens generated at each depth (32)")
    parser.add_argument("--dir", type=Path, help="folder for the random models (a temporary one, removed)")
    parser.add_argument("--results", type=Path, help="JSON file of all that was measured, continued if it is there")
    parser.add_argument("-o", "--output", choices=("md", "json", "csv"), default="md")
    args = parser.parse_args()
    rounds = 1 if args.quick else args.rounds
    n_threads = args.threads or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.dir or Path(temporary)
        path = args.results or folder / "context.json"
        settings = {"quick": args.quick, "threads": n_threads, "rounds": rounds, "n_decode": args.n_decode, "n_ubatch": SLICE}
        results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"measured": {}, "settings": settings}
        if results["settings"] != settings:
            parser.error(f"{path} has other settings: {results['settings']}; give another --results")
        results["machine"] = facts()
        todo = comparisons([args.only] if args.only else ["demo", "shape"], folder, args.quick)
        for c in todo:
            if c.name not in results["measured"]:
                results["measured"][c.name] = run(c, rounds, n_threads, args.n_decode)
                save(path, results)
        rows = [row for c in todo for row in rows_of(c, results["measured"][c.name], args.n_decode)]
    if args.output == "json":
        print(json.dumps({**results, "table": [vars(row) for row in rows]}, indent=1))
    elif args.output == "csv":
        writer = csv.DictWriter(sys.stdout, list(vars(rows[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(vars(row) for row in rows)
    else:
        print(markdown(rows, args.n_decode))
        print(f"\n(x: against llama.cpp.) {n_threads} threads, f16 caches, medians of {rounds} rounds. {facts_line()}")


if __name__ == "__main__":
    main()
