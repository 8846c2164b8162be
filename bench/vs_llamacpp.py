"""Ours against llama.cpp over the length of the context: prompts, generation, bytes of the caches, and the time to the first token.

    python bench/vs_llamacpp.py [--quick] [--rounds 5] [--threads N] [--only demo|shape|first-token] [--depths 512,2048] [--peer DIR |
        --build-peer] [--dir FOLDER] [--results FILE] [--plot FILE.svg] [-o md|json|csv]

Same threads, f16 caches, flash attention on in llama.cpp (llama-cpp-python), random token ids:
  demo         SmolLM2-135M-Instruct Q4_1, one GGUF for all: ours full, ours oracle, llama.cpp; depths 512, 1000, 2048, 6000
  shape        16 layers, 16/4 heads of 128, width 1024, Q8_0 random weights: ours as HySparse (full layers 0,4,8,12,15), ours full and
               llama.cpp with full attention everywhere (a `llama` GGUF of the same shape); depths 1024, 4096, 16384
  first-token  the demo's file, in the page cache, from opening it to the logits of a short prompt, each sample a fresh process
The engines (each in a process of its own) climb the ladder together: all take the same slice of 512 tokens in turn until a depth is
reached, so that they see the same state of the machine. There, --rounds times and in turn: a prompt of 512 more tokens, rewind, 32 tokens
one by one, rewind (llama-bench's pp512 and tg32 @ depth). The whole ladder is climbed --rounds times for the speed of whole prompts.
All figures are medians of rounds, all ratios medians of the rounds' ratios. Everything measured is in --results as soon as it is complete
(a climb, the samples of a first token), and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import first_token
from ladder import PEER, Comparison, Ladder
from machine import facts, facts_line
from make_random_gguf import PRESETS, write_random_gguf
from peer import PeerError, find_peer
from saving import save
from vs_report import FirstTokenRow, Row, first_token_markdown, first_token_rows, markdown, rows_of

from pyhysparse.demo import demo_model

FIRST_TOKEN = "first-token"
FIRST_TOKEN_CTX = 4096
TITLES = {"demo": "SmolLM2-135M-Instruct, Q4_1", "shape": "16 layers, 16/4 heads of 128, width 1024, Q8_0"}


def demo_comparison(quick: bool) -> Comparison:
    demo = demo_model()
    engines = (("full", demo, False), ("oracle", demo, True), (PEER, demo, False))
    return Comparison("demo", engines, (512, 1000) if quick else (512, 1000, 2048, 6000), 49152)


def shape_comparison(folder: Path, quick: bool) -> Comparison:
    """Makes the random models that are missing in `folder`."""
    shape = PRESETS["16-layer"]
    paths = {arch: folder / f"shape-{arch}.gguf" for arch in ("hysparse", "llama")}
    for arch, path in paths.items():
        if not path.exists():
            write_random_gguf(path, shape, arch)
    engines = (("hysparse", paths["hysparse"], False), ("full", paths["llama"], False), (PEER, paths["llama"], False))
    return Comparison("shape", engines, (512, 1024) if quick else (1024, 4096, 16384), shape.n_vocab)


def first_tokens(samples: dict[str, list[float]], path: Path, rounds: int, n_threads: int, site: str) -> None:
    """Add samples until there are `rounds` of each way."""
    with path.open("rb") as file:  # into the page cache
        while file.read(1 << 24):
            pass
    for i in range(len(samples.get(PEER, [])), rounds):
        taken = {way: first_token.sample(way, path, n_threads, FIRST_TOKEN_CTX, site) for way in first_token.WAYS[:: -1 if i % 2 else 1]}
        for way in first_token.WAYS:
            samples.setdefault(way, []).append(taken[way])


def measure(args: argparse.Namespace, results: dict[str, Any], path: Path, folder: Path, site: str) -> None:
    """Run what is not in results["measured"] yet; save after every piece."""
    measured, settings = results["measured"], results["settings"]
    n_threads = settings["threads"]
    for name in ("demo", "shape"):
        if args.only not in (None, name):
            continue
        c = demo_comparison(args.quick) if name == "demo" else shape_comparison(folder, args.quick)
        c = replace(c, depths=args.depths or c.depths)
        rounds = settings["rounds_shape"] if name == "shape" else settings["rounds"]
        mine = measured.setdefault(name, {"climbs": []})
        with Ladder(c, n_threads, settings["n_decode"], site) as ladder:
            while len(mine["climbs"]) < rounds:
                mine["climbs"].append(ladder.climb(0 if mine["climbs"] else rounds))
                save(path, results)
                print(f"{name}: climb {len(mine['climbs'])} of {rounds} done", file=sys.stderr, flush=True)
    if args.only in (None, FIRST_TOKEN):
        first_tokens(measured.setdefault(FIRST_TOKEN, {}), demo_model(), settings["rounds"], n_threads, site)
        save(path, results)


def report(results: dict[str, Any], output: str) -> list[Row]:
    measured, settings = results["measured"], results["settings"]
    rows = [row for name in TITLES if measured.get(name, {}).get("climbs") for row in rows_of(name, measured[name], settings["n_decode"])]
    first: list[FirstTokenRow] = first_token_rows(measured[FIRST_TOKEN]) if measured.get(FIRST_TOKEN) else []
    if output == "json":
        print(json.dumps({**results, "table": [*map(with_checks, rows), *map(with_checks, first)]}, indent=1))
    elif output == "csv":
        names = [name for name in Row.__dataclass_fields__ if name != "checks"]
        writer = csv.DictWriter(sys.stdout, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(vars(row) for row in rows)
    else:
        if rows:
            print(markdown(rows, settings["n_decode"]) + "\n")
        if first:
            print(first_token_markdown(first) + "\n")
        errors = {name: error for name in TITLES if name in measured for error in [measured[name]["climbs"][0]["nmse"]]}
        print(f"(x: times llama.cpp's speed.) {settings['threads']} threads, f16 caches, medians of {settings['rounds']} rounds "
              f"(shape: {settings['rounds_shape']}). {facts_line(results['machine'])}\nPeer: {results['peer']}")  # fmt: skip
        for name, nmse in errors.items():
            values = ", ".join(f"{engine} {value:.1e}" for engine, value in nmse.items())
            print(f"NMSE of our logits against llama.cpp's, {name}: {values}")
    return rows


def with_checks(row: Row | FirstTokenRow) -> dict[str, Any]:
    return {**asdict(row), "checks": [{**asdict(check), "met": check.met} for check in row.checks]}


def draw(rows: list[Row], path: Path) -> None:
    from plot import plot

    try:
        plot(rows, TITLES, path)
    except ImportError as error:
        print(f"no plot: {error}; pip install 'pyhysparse[bench]' or matplotlib", file=sys.stderr)


def depth_list(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(item) for item in text.split(",")}))


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="one round, short contexts: does it work?")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of everything (5)")
    parser.add_argument("--rounds-long", type=int, help="those of the shape, whose ladder is long (as --rounds)")
    parser.add_argument("--only", choices=("demo", "shape", FIRST_TOKEN), help="one of the comparisons")
    parser.add_argument("--depths", type=depth_list, help="instead of each comparison's own, e.g. 512,2048")
    parser.add_argument("--threads", type=int, default=0, help="of both sides (0: the cores this process may use)")
    parser.add_argument("--n-decode", type=int, default=32, help="tokens generated at each depth (32)")
    parser.add_argument("--peer", type=Path, metavar="DIR", help="a folder with llama_cpp in it (the installed one, or one built before)")
    kinds = ("auto", "default", "no-amx")
    parser.add_argument("--build-peer", nargs="?", const="auto", choices=kinds, help="compile llama-cpp-python (once)")
    parser.add_argument("--dir", type=Path, help="folder for the random models (a temporary one, removed)")
    parser.add_argument("--results", type=Path, help="JSON file of all that was measured, continued if it is there")
    parser.add_argument("--from", dest="source", type=Path, help="measure nothing: table and plot of an earlier --results")
    parser.add_argument("--plot", type=Path, help="SVG of tokens a second and cache bytes over the context (needs matplotlib)")
    parser.add_argument("-o", "--output", choices=("md", "json", "csv"), default="md")
    return parser


def main() -> int:
    parser = arguments()
    args = parser.parse_args()
    if args.source:
        results = json.loads(args.source.read_text())
    else:
        try:
            peer = find_peer(args.peer, args.build_peer)
        except PeerError as error:
            print(error, file=sys.stderr)
            return 1
        print(f"peer: {peer}", file=sys.stderr)
        rounds = 1 if args.quick else args.rounds
        settings = {
            "quick": args.quick, "threads": args.threads or len(os.sched_getaffinity(0)), "rounds": rounds,
            "rounds_shape": rounds if args.quick else args.rounds_long or rounds, "n_decode": args.n_decode,
            "depths": list(args.depths or ()), "peer_build": peer.build, "peer_version": peer.version,
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as temporary:
            folder = args.dir or Path(temporary)
            path = args.results or folder / "vs_llamacpp.json"
            results = json.loads(path.read_text()) if path.exists() else {"measured": {}, "settings": settings}
            if results["settings"] != settings:
                parser.error(f"{path} has other settings: {results['settings']}, not {settings}; give another --results")
            results["machine"], results["peer"] = facts(), str(peer)
            measure(args, results, path, folder, peer.site)
    rows = report(results, args.output)
    if args.plot:
        draw(rows, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
