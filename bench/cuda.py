"""Times all that the CUDA ops and models are held to, on one card, and prints the targets beside what was reached (for bench/cuda.sh).

    python bench/cuda.py --runner OP_RUNNER --peer LLAMA_PEER [--only floors,ops,7b,batch,80b,f16] [--group REGEX] [--rounds 5]
        [--results FILE]
    python bench/cuda.py --from bench/results/cuda.json        the tables of an earlier run

--device cpu --small: does the script work? Without a GPU, tiny shapes.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cuda_models import MODEL_STEPS, Sizes, Work, run_models
from cuda_ops import BIG, SMALL, groups, run_ops
from cuda_report import markdown
from machine import facts
from saving import save

__all__ = ["card"]

HERE = Path(__file__).resolve().parent
PARTS = ("floors", "ops", *MODEL_STEPS)
FLOOR_SECONDS = 45.0  # one pass with torch's start


def card(device: str) -> dict[str, str]:
    """Name, driver, memory (MiB) and clocks of the first GPU."""
    if device == "cpu":
        return {"name": "CPU"}
    names = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm")
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    fields = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().split(",")
    return dict(zip(names, (field.strip() for field in fields), strict=True))


def floors(device: str, rounds: int, small: bool, limit_s: float) -> dict[str, Any]:
    """One pass of cuda_floors.py; {"error", "jobs"} when it fails."""
    command = [sys.executable, str(HERE / "cuda_floors.py"), "--rounds", str(rounds), "--device", "cpu" if device == "cpu" else "cuda"]
    command += ["--tokens", "256", "--size", "256", "--bytes", "16777216"] if small else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(limit_s, 1))
    except subprocess.TimeoutExpired:
        return {"error": "took too long", "jobs": {}}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1], "jobs": {}}
    out: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return out


def model_folder(needed: int, asked: Path | None) -> Path:
    """Where the random models go: memory where there is room (they are read once), else a temporary folder."""
    shm = Path("/dev/shm")
    parent = asked or (shm if shm.is_dir() and shutil.disk_usage(shm).free > needed else None)
    return Path(tempfile.mkdtemp(prefix="hysparse-models-", dir=parent))


def measure(args: argparse.Namespace, results: dict[str, Any], path: Path, deadline: float) -> None:
    def left() -> float:
        return deadline - time.time()

    def step(name: str, start: float, **more: Any) -> None:
        results["steps"].append({"step": name, "seconds": time.perf_counter() - start, **more})
        save(path, results)
        print(f"  {name}: {results['steps'][-1]['seconds']:.0f} s, {left():.0f} s left", file=sys.stderr, flush=True)

    def pass_of_floors(name: str) -> None:
        start = time.perf_counter()
        found = floors(args.device, args.rounds, args.small, min(left(), 2 * FLOOR_SECONDS))
        results["floors"].append(found)
        step(name, start, **({"error": found["error"]} if "error" in found else {}))

    if "floors" in args.only:
        pass_of_floors("floors")
    if "ops" in args.only:
        start = time.perf_counter()
        wanted = [g for g in groups(SMALL if args.small else BIG) if not args.group or re.search(args.group, g)]
        results["ops"] = run_ops(args.runner, "CPU" if args.device == "cpu" else "CUDA0", wanted, args.rounds, min(left(), 240))
        step("ops", start)
        if "floors" in args.only:
            pass_of_floors("floors again")
    if any(name in args.only for name in MODEL_STEPS):
        folder = model_folder(50 << 30, args.dir)
        memory = float(results["card"].get("memory.total", "0").split()[0]) * 2**20
        sizes = Sizes.small() if args.small else Sizes()
        work = Work(
            folder, args.peer, args.device != "cpu", args.rounds, sizes, memory, left, lambda: save(path, results), results["models"],
            results["steps"],
        )  # fmt: skip
        try:
            run_models(work, lambda name: name in args.only)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    save(path, results)


def parts(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(PARTS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: expected some of {','.join(PARTS)}")
    return names


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--runner", type=Path, help="op_runner")
    parser.add_argument("--peer", type=Path, help="llama_peer")
    parser.add_argument("--only", type=parts, default=PARTS, help=f"some of {','.join(PARTS)}")
    parser.add_argument("--group", help="regular expression: only groups of ops whose text it finds")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of everything but the longest prompts (5)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny shapes: does it work?")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing that would not be done by then")
    parser.add_argument("--started", type=float, default=0.0, help="since this time (as `date +%%s` has it) instead of now")
    parser.add_argument("--dir", type=Path, help="folder for the random models (memory, if there is room, or a temporary one; removed)")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "cuda.json", help="JSON of everything (bench/results/cuda.json)")
    parser.add_argument("--from", dest="source", type=Path, help="measure nothing: the tables of an earlier --results")
    args = parser.parse_args()
    lengths = SMALL if args.small else BIG
    if args.source:
        print(markdown(json.loads(args.source.read_text()), lengths))
        return 0
    if ("ops" in args.only and not args.runner) or (any(name in args.only for name in MODEL_STEPS) and not args.peer):
        parser.error("--runner is needed for ops, --peer for models")
    results: dict[str, Any] = {"card": card(args.device), "machine": facts(), "rounds": args.rounds, "floors": [], "ops": []}
    results |= {"models": {}, "steps": []}
    args.results.parent.mkdir(parents=True, exist_ok=True)
    measure(args, results, args.results, (args.started or time.time()) + args.seconds)
    print(markdown(results, lengths))
    return 1 if any("error" in s for s in results["steps"]) or any("error" in g for g in results["ops"]) else 0


if __name__ == "__main__":
    sys.exit(main())
