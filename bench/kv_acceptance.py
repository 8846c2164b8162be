"""The memory promise: HySparse's two layer patterns with shrunk widths, allocated for 32768 tokens, prefilled with 8192, decoding.

    python bench/kv_acceptance.py [--dir FOLDER] [--n-ctx 32768] [--prefill 8192] [--decode 32] [-o md|json|csv]

For each it makes a random Q8_0 model (bench/make_random_gguf.py), asks `hysparse inspect --json` for the cache bytes, opens a session, and
compares them with the bytes allocated, and bytes a token with SPEC 1's. Exits with 1 when they differ.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from machine import facts_line
from make_random_gguf import PRESETS, write_random_gguf

from pyhysparse import Model, Session, SessionParams

__all__ = ["BYTES_PER_TOKEN", "Outcome", "accept", "inspected_memory"]

BYTES_PER_TOKEN = {"7b-shrunk": (40960, 147456), "80b-shrunk": (10240, 100352)}  # f16: HySparse, full attention (SPEC 1)


@dataclass(frozen=True)
class Outcome:
    """Of one model. Bytes planned are what `inspect` prints, allocated what the session has; speeds in tokens a second."""

    preset: str
    n_ctx: int
    planned_pages: int
    planned_rings: int
    allocated_pages: int
    allocated_rings: int
    bytes_per_token: int
    full_bytes_per_token: int
    n_prefill: int
    prefill_per_second: float
    n_decode: int
    decode_per_second: float
    finite: bool  # all logits that came back

    @property
    def accepted(self) -> bool:
        planned = (self.planned_pages, self.planned_rings) == (self.allocated_pages, self.allocated_rings)
        pages = self.planned_pages == self.n_ctx * self.bytes_per_token
        return planned and pages and (self.bytes_per_token, self.full_bytes_per_token) == BYTES_PER_TOKEN[self.preset] and self.finite


def inspected_memory(path: Path, n_ctx: int) -> dict[str, int]:
    """The "memory" object of `hysparse inspect --json -c n_ctx`."""
    command = [sys.executable, "-m", "pyhysparse.cli.main", "inspect", str(path), "--json", "-c", str(n_ctx)]
    memory: dict[str, int] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["memory"]
    return memory


def accept(preset: str, folder: Path, n_ctx: int, n_prefill: int, n_decode: int) -> Outcome:
    """Make, inspect, allocate, prefill, decode."""
    path = write_random_gguf(folder / f"{preset}.gguf", PRESETS[preset])
    planned = inspected_memory(path, n_ctx)
    with Model(path) as model, Session(model, SessionParams(n_ctx=n_ctx)) as session:
        allocated = session.memory
        tokens = np.random.default_rng(1).integers(0, model.info.n_vocab, n_prefill + n_decode, dtype=np.int32)
        start = time.perf_counter()
        finite = bool(np.isfinite(session.eval(tokens[:n_prefill])).all())
        middle = time.perf_counter()
        for i in range(n_prefill, n_prefill + n_decode):
            finite = finite and bool(np.isfinite(session.eval(tokens[i : i + 1])).all())
        end = time.perf_counter()
    per_token, full_per_token = planned["page_bytes_per_token"], planned["full_attention_bytes_per_token"]
    return Outcome(
        preset, n_ctx, planned["pages"], planned["rings"], allocated.pages, allocated.rings, per_token, full_per_token,
        n_prefill, n_prefill / (middle - start), n_decode, n_decode / (end - middle), finite,
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--dir", type=Path, help="folder for the models (a temporary one, removed)")
    parser.add_argument("--n-ctx", type=int, default=32768)
    parser.add_argument("--prefill", type=int, default=8192)
    parser.add_argument("--decode", type=int, default=32)
    parser.add_argument("-o", "--output", choices=("md", "json", "csv"), default="md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.dir or Path(temporary)
        outcomes = [accept(preset, folder, args.n_ctx, args.prefill, args.decode) for preset in BYTES_PER_TOKEN]
    if args.output == "json":
        print(json.dumps([{**asdict(o), "accepted": o.accepted} for o in outcomes], indent=1))
    elif args.output == "csv":
        writer = csv.DictWriter(sys.stdout, [*asdict(outcomes[0]), "accepted"], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**asdict(o), "accepted": o.accepted} for o in outcomes)
    else:
        print("| model | pages, bytes | rings, bytes | = allocated | bytes a token | full attention | ratio | prefill t/s | decode t/s |")
        print("|---|--:|--:|---|--:|--:|--:|--:|--:|")
        for o in outcomes:
            print(f"| {o.preset} | {o.planned_pages:,} | {o.planned_rings:,} | {'yes' if o.accepted else 'NO'} | {o.bytes_per_token:,} | "
                  f"{o.full_bytes_per_token:,} | {o.full_bytes_per_token / o.bytes_per_token:.1f}x | {o.prefill_per_second:.0f} "
                  f"({o.n_prefill}) | {o.decode_per_second:.1f} ({o.n_decode}) |")  # fmt: skip
        print(f"\nContext {args.n_ctx}, f16 caches. {facts_line()}")
    return 0 if all(o.accepted for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
