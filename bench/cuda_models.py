"""The model rows of bench/cuda.py: the 7B shape against llama.cpp, the 80B-A3B shape alone, random weights, in turn on one device.

A step is skipped, and said so, when its estimate does not fit in what is left of the time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cuda_engines import Engine, LlamaPeer, OpenArgs, Ours
from make_random_gguf import PRESETS, Shape, write_random_gguf

__all__ = ["MODEL_STEPS", "Sizes", "Work", "run_models"]

WARM_STEPS = 8


@dataclass(frozen=True)
class Sizes:
    """Lengths, and which shapes; `small` tries the scripts where there is no device."""

    short: int = 4096
    middle: int = 32768
    long: int = 131072
    n_seq: int = 16
    steps: int = 32  # decoded in a sample
    n_ubatch: int = 2048
    types: tuple[str, str] = ("Q4_K_M", "Q4_0")
    dense: Shape = PRESETS["7b"]
    experts: Shape = PRESETS["80b"]

    @staticmethod
    def small() -> Sizes:
        dense = replace(PRESETS["7b-shrunk"], n_layer=8, full_layers=(0, 4, 7), n_vocab=2048)
        return Sizes(128, 256, 512, 3, 4, 128, dense=dense, experts=replace(PRESETS["80b-shrunk"], n_vocab=2048))


@dataclass
class Work:
    """What the steps share. left: seconds until no step may begin; done: results by step; steps: how long each took."""

    folder: Path
    peer_program: Path
    gpu: bool
    rounds: int
    sizes: Sizes
    memory_bytes: float  # of the device
    left: Callable[[], float]
    save: Callable[[], None]
    done: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)

    def file(self, name: str, arch: str, type_name: str) -> Path:
        """The random model, made when it is not there; a name that starts with 80b is of the experts' shape."""
        path = self.folder / f"{name}-{arch}-{type_name}.gguf"
        if not path.exists():
            write_random_gguf(path, self.sizes.experts if name == "80b" else self.sizes.dense, arch, type_name)
        return path

    def open_pair(self, type_name: str, n_ctx: int, n_seq: int = 1, cache: str = "f16") -> tuple[Ours, LlamaPeer]:
        args = OpenArgs(self.file("7b", "hysparse", type_name), n_ctx, n_seq, self.sizes.n_ubatch, cache, self.gpu)
        ours = Ours(args, self.folder)
        try:
            args = OpenArgs(self.file("7b", "llama", type_name), n_ctx, n_seq, self.sizes.n_ubatch, cache, self.gpu)
            return ours, LlamaPeer(args, self.peer_program)
        except BaseException:
            ours.close()
            raise


def alternately(pair: tuple[Engine, Engine], rounds: int, sample: Callable[[Engine], float]) -> dict[str, list[float]]:
    """Samples of both in turn, in alternating order."""
    out: dict[str, list[float]] = {"ours": [], "peer": []}
    for r in range(rounds):
        for i in (0, 1) if r % 2 == 0 else (1, 0):
            out["ours" if i == 0 else "peer"].append(sample(pair[i]))
    return out


def decode_rows(pair: tuple[Engine, Engine], work: Work, n_seq: int = 1) -> dict[str, Any]:
    for engine in pair:
        engine.decode(n_seq, WARM_STEPS)  # graphs are captured in the first steps
    seconds = alternately(pair, work.rounds, lambda e: e.decode(n_seq, work.sizes.steps))
    return {"seconds": seconds, "tokens": n_seq * work.sizes.steps}


def fresh_prompt(engine: Engine, n: int) -> float:
    engine.clear()
    return engine.eval(0, n)


def climb(work: Work, type_name: str, key: str, whole: bool) -> None:
    """Decode at the short and the long context, prompts of the middle (whole: and of all rounds) and the long one."""
    s, rows = work.sizes, work.done.setdefault(key, {})
    extra = WARM_STEPS + work.rounds * s.steps
    ours, peer = work.open_pair(type_name, s.long + extra + 64)
    pair: tuple[Engine, Engine] = (ours, peer)
    try:
        rows["placement"], rows["cache_bytes"] = ours.placement, {"ours": ours.cache_bytes(), "peer": peer.cache_bytes()}
        rows["page_bytes_per_token"], rows["n_ctx"] = ours.page_bytes_per_token(), s.long + extra + 64
        for engine in pair:
            engine.eval(0, s.short)
        if whole:
            rows["decode_short"] = decode_rows(pair, work) | {"depth": s.short}
            rows["prefill_middle"] = {"seconds": alternately(pair, work.rounds, lambda e: fresh_prompt(e, s.middle)), "tokens": s.middle}
            work.save()
        rows["prefill_long"] = {"seconds": alternately(pair, 1, lambda e: fresh_prompt(e, s.long)), "tokens": s.long}
        rows["decode_long"] = decode_rows(pair, work) | {"depth": s.long}
        rows["finite"] = {"ours": ours.finite(), "peer": peer.finite()}
    finally:
        ours.close()
        peer.close()


def dense_q4(work: Work) -> None:
    climb(work, work.sizes.types[0], "7b-q4", whole=True)


def dense_f16(work: Work) -> None:
    climb(work, "F16", "7b-f16", whole=False)


def batch(work: Work) -> None:
    """Many sequences at the middle length: the prompt once, then copied. f16 caches where llama.cpp's fit the device."""
    s, rows = work.sizes, work.done.setdefault("7b-batch", {})
    shape = s.dense
    peer_bytes = 4.0 * shape.n_layer * shape.n_head_kv * shape.head_dim * s.middle * s.n_seq
    cache = "f16" if peer_bytes < 0.75 * work.memory_bytes else "q8_0"
    n_ctx = (s.middle + WARM_STEPS + work.rounds * s.steps + 255) // 256 * 256
    ours, peer = work.open_pair(s.types[0], n_ctx, s.n_seq, cache)
    pair: tuple[Engine, Engine] = (ours, peer)
    try:
        rows["cache_type"], rows["cache_bytes"] = cache, {"ours": ours.cache_bytes(), "peer": peer.cache_bytes()}
        for engine in pair:
            engine.eval(0, s.middle)
            engine.spread(s.n_seq)
        rows["decode"] = decode_rows(pair, work, s.n_seq) | {"depth": s.middle, "n_seq": s.n_seq}
        rows["finite"] = {"ours": ours.finite(), "peer": peer.finite()}
    finally:
        ours.close()
        peer.close()


def experts(work: Work) -> None:
    """The 80B-A3B shape at the long context, ours alone."""
    s, rows = work.sizes, work.done.setdefault("80b", {})
    for path in work.folder.glob("7b-*.gguf"):  # room for the large one
        path.unlink()
    start = time.perf_counter()
    path = work.file("80b", "hysparse", s.types[1])
    rows["write_seconds"], rows["file_bytes"] = time.perf_counter() - start, path.stat().st_size
    n_ctx = s.long + WARM_STEPS + work.rounds * s.steps + 64
    start = time.perf_counter()
    ours = Ours(OpenArgs(path, n_ctx, 1, s.n_ubatch, "f16", work.gpu), work.folder)
    try:
        rows["load_seconds"], rows["placement"] = time.perf_counter() - start, ours.placement
        rows["cache_bytes"], rows["n_ctx"], rows["page_bytes_per_token"] = {"ours": ours.cache_bytes()}, n_ctx, ours.page_bytes_per_token()
        rows["prefill_long"] = {"seconds": {"ours": [ours.eval(0, s.long)]}, "tokens": s.long}
        ours.decode(1, WARM_STEPS)
        seconds = [ours.decode(1, s.steps) for _ in range(work.rounds)]
        rows["decode_long"] = {"seconds": {"ours": seconds}, "tokens": s.steps, "depth": s.long}
        rows["finite"] = {"ours": ours.finite()}
    finally:
        ours.close()
        path.unlink()


# name: what runs, and how long it takes on an H100 with everything at its aims
MODEL_STEPS: dict[str, tuple[Callable[[Work], None], float]] = {
    "7b": (dense_q4, 120), "batch": (batch, 40), "80b": (experts, 90), "f16": (dense_f16, 100),
}  # fmt: skip


def run_models(work: Work, wanted: Callable[[str], bool]) -> None:
    """The wanted steps that still fit, in order; what one raises is its result."""
    for name, (step, estimate) in MODEL_STEPS.items():
        if not wanted(name):
            continue
        if work.left() < (estimate if work.gpu else 0):
            work.steps.append({"step": name, "skipped": f"{work.left():.0f} s left, about {estimate:.0f} needed"})
            print(f"  {name}: skipped, {work.left():.0f} s left", file=sys.stderr, flush=True)
            continue
        start = time.perf_counter()
        entry: dict[str, Any] = {"step": name}
        try:
            step(work)
        except Exception as error:  # the other steps still count
            entry["error"] = f"{type(error).__name__}: {error}"
        entry["seconds"] = time.perf_counter() - start
        work.steps.append(entry)
        work.save()
        print(f"  {name}: {entry.get('error', 'done')} ({entry['seconds']:.0f} s)", file=sys.stderr, flush=True)
