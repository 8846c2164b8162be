"""The ops alone, against ggml's attention and against the floor of the machine.

    python bench/ops.py [--quick] [--rounds 7] [--threads N] [--only REGEX] [--runner PATH] [--results FILE] [-o md|json|csv] [GROUP ...]

`op_runner perf` does the timing, in one process: the nodes of a group (ours, ours without scores, ggml_flash_attn_ext on the same shape)
are timed in turn in every round, in alternating order. The floor is the larger of two times measured in the same process with as many
threads: reading K and V once, and the multiply-adds at the peak of f32. GROUPs replace the list of cases, e.g. "full f16 32/8x128 1@8192 |
flash f16 32/8x128 1@8192" (ggml_ops/op_perf_node.h). op_runner is built from this source tree unless --runner names one.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import facts, facts_line
from ops_report import OpRow, markdown, rows_of_group
from saving import save

from pyhysparse.demo import cache_dir

__all__ = ["groups"]

ROOT = Path(__file__).resolve().parent.parent
SPARSE_KEYS = (4096, 262144)


def against_ggml(cache: str, heads: str, at: str) -> str:
    """Ours, ours without scores, ggml's."""
    return " | ".join(f"{kind} {cache} {heads} {at}" for kind in ("full", "full-noscores", "flash"))


def groups(quick: bool) -> list[str]:
    """The cases: the targets' at 32/8 heads of 128, the demo's 9/3 heads of 64, the random shape's 16/4 of 128."""
    big = "32/8x128"
    keys = (1024, 4096) if quick else (1024, 4096, 16384, 32768)
    out = [against_ggml(cache, big, f"1@{n}") for cache in ("f16", "q8_0", "f32") for n in keys]
    out += [against_ggml(cache, big, f"{new}@4096") for cache in ("f16", "q8_0") for new in ((64,) if quick else (64, 512))]
    sparse_keys = (4096, 16384) if quick else SPARSE_KEYS
    out += [" | ".join(f"sparse {cache} {big} 1@{n}" for n in sparse_keys) for cache in ("f16", "q8_0")]
    at = "64@8192" if quick else "512@32768"
    for cache in ("f16", "q8_0"):
        nodes = [f"full {cache} {big} {at}", f"full {cache} {big} {at.split('@')[0]}@4096"]
        out.append(" | ".join([*nodes, f"sparse {cache} {big} {at}", f"sparse-random {cache} {big} {at}"]))
    out += [f"select f32 {big} 1@{n}" for n in (4096, 32768, *(() if quick else (262144,)))]
    out += [f"window {cache} {big} {new}@4096" for cache in ("f16", "q8_0") for new in (1, 512)]
    out += [against_ggml("f16", "9/3x64", at) for at in ("1@6000", "512@6000")]
    out += [against_ggml("f16", "16/4x128", at) for at in ("1@4096", *(() if quick else ("1@16384", "512@16384")))]
    return out


def build_runner() -> Path:
    """op_runner of this source tree, built in the user's cache (again only where something changed)."""
    folder = cache_dir() / "bench" / ("op_runner-" + hashlib.sha256(str(ROOT).encode()).hexdigest()[:12])
    configure = ["cmake", "-S", str(ROOT), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release", "-DHYSPARSE_BUILD_TESTS=ON"]
    build = ["cmake", "--build", str(folder), "--target", "op_runner", "-j", str(len(os.sched_getaffinity(0)))]
    for command in (configure, build):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return folder / "op_runner"


def measure(runner: Path, wanted: list[str], rounds: int, threads: int, level: str | None, save_to: Path | None) -> dict[str, Any]:
    """Run op_runner over the groups. {"machine", "perf" (its first line), "groups"}, saved after every group."""
    command = [str(runner), "perf", "--json", "--rounds", str(rounds), "-t", str(threads), *(["--level", level] if level else []), *wanted]
    results: dict[str, Any] = {"machine": facts(), "perf": {}, "groups": []}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            item = json.loads(line)
            if "group" in item:
                results["groups"].append(item)
                print(f"{len(results['groups'])}/{len(wanted)} {item['group']}", file=sys.stderr, flush=True)
                if save_to:
                    save(save_to, results)
            else:
                results["perf"] = item
    if process.returncode and not results["groups"]:
        raise SystemExit(f"{runner} ended with {process.returncode}")
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("groups", nargs="*", metavar="GROUP", help="instead of the list of cases: SPEC | SPEC ...")
    parser.add_argument("--quick", action="store_true", help="two rounds, short contexts: does it work?")
    parser.add_argument("--rounds", type=int, help="measurements of everything (7)")
    parser.add_argument("--threads", type=int, default=0, help="of both sides (0: the cores this process may use)")
    parser.add_argument("--level", help="instruction set of our kernels: scalar, avx2, avx512 ... (the best)")
    parser.add_argument("--only", help="regular expression: groups whose text it finds")
    parser.add_argument("--runner", type=Path, help="an op_runner to use (built when not given)")
    parser.add_argument("--results", type=Path, help="JSON file of all that was measured")
    parser.add_argument("--from", dest="source", type=Path, help="measure nothing: the table of an earlier --results")
    parser.add_argument("-o", "--output", choices=("md", "json", "csv"), default="md")
    args = parser.parse_args()
    if args.source:
        results = json.loads(args.source.read_text())
    else:
        wanted = [g for g in args.groups or groups(args.quick) if not args.only or re.search(args.only, g)]
        if not wanted:
            parser.error(f"--only {args.only}: no group matches")
        threads = args.threads or len(os.sched_getaffinity(0))
        rounds = args.rounds or (2 if args.quick else 7)
        results = measure(args.runner or build_runner(), wanted, rounds, threads, args.level, args.results)
    failed = [f"{g['group']}: {g['error']}" for g in results["groups"] if "error" in g]
    rows: list[OpRow] = [row for g in results["groups"] if "nodes" in g for row in rows_of_group(g["nodes"], targets=True)]
    if args.output == "json":
        table = [{**vars(r), "checks": [vars(c) | {"met": c.met} for c in r.checks]} for r in rows]
        print(json.dumps({**results, "table": table}, indent=1))
    elif args.output == "csv":
        names = [name for name in OpRow.__dataclass_fields__ if name != "checks"]
        writer = csv.DictWriter(sys.stdout, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(vars(row) for row in rows)
    else:
        print(markdown(rows))
        perf = results["perf"]
        peak = f"at most {2e-9 * perf['fma_per_s']:.0f} GFLOP/s of f32"
        print(f"\nLevel {perf['level']}, {perf['threads']} threads, {perf['rounds']} rounds; {peak}. {facts_line(results['machine'])}")
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
