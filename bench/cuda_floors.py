"""What the card can do, and what torch's attention does on it, as JSON: for bench/cuda.py, a process of its own (torch keeps memory).

    python bench/cuda_floors.py [--rounds 5] [--device cuda|cpu] [--tokens 8192] [--size 8192] [--bytes 4294967296]

read: reductions over a buffer, the fastest kind; copy: one buffer into another, bytes read and written; matmul: an f16 product of two
square matrices; cudnn and flash: causal attention of 32 query and 8 KV heads of 128 in f16. Times in microseconds, one a round, all
kinds in turn.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["measure"]

HEADS, KV_HEADS, DIM = 32, 8, 128
SAMPLE_US = 20000.0


def timer(device: str) -> Callable[[Callable[[], Any], int], float]:
    """A function that runs another n times and returns the microseconds of one: by events on the device, or by the clock."""

    def on_device(run: Callable[[], Any], n: int) -> float:
        event: Callable[..., Any] = torch.cuda.Event
        start, end = event(enable_timing=True), event(enable_timing=True)
        start.record()
        for _ in range(n):
            run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1000 / n

    def by_clock(run: Callable[[], Any], n: int) -> float:
        start = time.perf_counter()
        for _ in range(n):
            run()
        return (time.perf_counter() - start) * 1e6 / n

    return on_device if device == "cuda" else by_clock


def attention(device: str, tokens: int, backend: SDPBackend) -> Callable[[], Any]:
    q = torch.randn(1, HEADS, tokens, DIM, dtype=torch.float16, device=device)
    k, v = (torch.randn(1, KV_HEADS, tokens, DIM, dtype=torch.float16, device=device) for _ in range(2))

    def run() -> Any:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    return run


def jobs(device: str, tokens: int, size: int, n_bytes: int) -> dict[str, tuple[Callable[[], Any], float]]:
    """Name to (what to run, its work: bytes, or operations counting a multiply-add as two)."""
    source = torch.ones(n_bytes // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(size, size, dtype=torch.float16, device=device) for _ in range(2))
    flops = HEADS * 4.0 * DIM * tokens * (tokens + 1) / 2
    out: dict[str, tuple[Callable[[], Any], float]] = {
        "read_sum": (source.sum, n_bytes), "read_max": (source.max, n_bytes), "copy": (lambda: target.copy_(source), 2.0 * n_bytes),
        "matmul": (lambda: a @ b, 2.0 * size**3),
    }  # fmt: skip
    named = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION} if device == "cuda" else {"math": SDPBackend.MATH}
    return out | {name: (attention(device, tokens, backend), flops) for name, backend in named.items()}


def measure(device: str, rounds: int, tokens: int, size: int, n_bytes: int) -> dict[str, Any]:
    """{"torch", "device", "jobs": {name: {"work", "us": [...]} or {"error"}}}."""
    clock = timer(device)
    results: dict[str, Any] = {"torch": torch.__version__, "device": "cpu", "jobs": {}}
    if device == "cuda":
        version: Callable[[], Any] = torch.backends.cudnn.version
        results |= {"device": torch.cuda.get_device_name(), "cudnn": version()}
    repeats = {}
    work = jobs(device, tokens, size, n_bytes)
    for name, (run, amount) in work.items():
        try:
            clock(run, 2)
            repeats[name] = max(int(SAMPLE_US / max(clock(run, 2), 1.0)), 1)
            results["jobs"][name] = {"work": amount, "us": []}
        except RuntimeError as error:  # this torch or this card has none
            results["jobs"][name] = {"error": str(error).splitlines()[0]}
    for _ in range(rounds):
        for name, n in repeats.items():
            results["jobs"][name]["us"].append(clock(work[name][0], n))
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tokens", type=int, default=8192, help="of the attention (8192)")
    parser.add_argument("--size", type=int, default=8192, help="of the matrices (8192)")
    parser.add_argument("--bytes", type=int, default=1 << 32, help="of the buffer that is read and copied (4 GiB)")
    args = parser.parse_args()
    print(json.dumps(measure(args.device, args.rounds, args.tokens, args.size, args.bytes)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
