"""Engines that climb the same ladder of context depths together, slice by slice in turn, and what is measured on the way."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from engines import EngineSpec, Worker

__all__ = ["PEER", "SLICE", "Comparison", "Ladder"]

SLICE = 512
PEER = "llama.cpp"


@dataclass(frozen=True)
class Comparison:
    """Engines (name, GGUF, oracle mode) on a ladder of depths."""

    name: str
    engines: tuple[tuple[str, Path, bool], ...]
    depths: tuple[int, ...]
    n_vocab: int


class Ladder:
    """The engines of a comparison, each in a process of its own, started when first needed."""

    def __init__(self, comparison: Comparison, n_threads: int, n_decode: int, site: str) -> None:
        self.comparison = comparison
        self.n_threads = n_threads
        self.n_decode = n_decode
        self.site = site
        self.workers: dict[str, Worker] = {}
        self.order: list[str] = []
        n_tokens = max(comparison.depths) + max(SLICE, n_decode)
        self.tokens = np.random.default_rng(1).integers(0, comparison.n_vocab, n_tokens, dtype=np.int32)

    def __enter__(self) -> Ladder:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self.workers.values():
            worker.close()

    def _start(self) -> None:
        c = self.comparison
        for name, gguf, oracle in c.engines if not self.workers else ():
            n_ctx = max(c.depths) + max(SLICE, self.n_decode) + 64
            self.workers[name] = Worker(EngineSpec(name, str(gguf), n_ctx, SLICE, self.n_threads, oracle, self.site))
            self.workers[name].eval(np.arange(64, dtype=np.int32))  # touch the weights
            self.order.append(name)
        for worker in self.workers.values():
            worker.rewind(0)

    def climb(self, rounds: int) -> dict[str, Any]:
        """From an empty context to the deepest depth, all engines taking each slice in turn.

        {"prompt": {depth: {engine: seconds of the whole prompt}}}; with rounds > 0 also "at": {depth: {engine: {"pp": [s], "tg": [s],
        "bytes": n}}}, measured there `rounds` times in turn (SLICE more tokens at once; n_decode one by one), and "nmse".
        """
        self._start()
        out: dict[str, Any] = {"prompt": {}}
        if rounds:
            out["at"] = {}
        seconds = dict.fromkeys(self.workers, 0.0)
        at = 0
        for depth in self.comparison.depths:
            while at < depth:
                part = self.tokens[at : min(at + SLICE, depth)]
                for name in self.order:
                    seconds[name] += self.workers[name].eval(part)
                at += len(part)
                self.order.reverse()
            out["prompt"][str(depth)] = dict(seconds)
            if rounds:
                out.setdefault("nmse", self._logit_errors())
                out["at"][str(depth)] = self._measure(depth, rounds)
                print(f"{self.comparison.name}: depth {depth} done", file=sys.stderr, flush=True)
        return out

    def _measure(self, depth: int, rounds: int) -> dict[str, Any]:
        cell: dict[str, Any] = {}
        for name, worker in self.workers.items():
            cell[name] = {"bytes": worker.cache_bytes(), "pp": [], "tg": []}
            worker.decode(self.tokens[:2])  # the first one after a prompt builds another graph
            worker.rewind(depth)
        for _ in range(rounds):
            for name in self.order:
                cell[name]["pp"].append(self.workers[name].eval(self.tokens[depth : depth + SLICE]))
                self.workers[name].rewind(depth)
            for name in self.order:
                cell[name]["tg"].append(self.workers[name].decode(self.tokens[depth : depth + self.n_decode]))
                self.workers[name].rewind(depth)
            self.order.reverse()
        return cell

    def _logit_errors(self) -> dict[str, float]:
        """NMSE of the last logits against llama.cpp's, of the engines that run its file: that both sides do the same work."""
        base = self.workers[PEER].logits().astype(np.float64)
        paths = {name: path for name, path, _ in self.comparison.engines}
        same = [name for name in self.workers if name != PEER and paths[name] == paths[PEER]]
        rows = {name: self.workers[name].logits().astype(np.float64) for name in same}
        return {name: float(((row - base) ** 2).sum() / (base**2).sum()) for name, row in rows.items()}
