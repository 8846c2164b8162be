"""Ours and llama.cpp as bench/cuda_models.py drives them: the same commands, the same tokens, only the work on tokens timed."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Engine", "EngineError", "LlamaPeer", "OpenArgs", "Ours"]


class EngineError(RuntimeError):
    """An engine could not do what it was asked for; its message."""


class OpenArgs:
    """What to open: n_ctx tokens for each of n_seq sequences; gpu: all layers there, or none."""

    def __init__(self, path: Path, n_ctx: int, n_seq: int = 1, n_ubatch: int = 2048, cache_type: str = "f16", gpu: bool = True) -> None:
        self.path, self.n_ctx, self.n_seq, self.n_ubatch, self.cache_type, self.gpu = path, n_ctx, n_seq, n_ubatch, cache_type, gpu


class Engine(Protocol):
    """Sequences 0 .. n_seq - 1. Seconds come back from eval and decode."""

    def eval(self, seq: int, n: int) -> float:
        """Append n tokens to a sequence."""

    def decode(self, n_seq: int, steps: int) -> float:
        """A token more for each of the first n_seq sequences, steps times."""

    def clear(self) -> None:
        """Empty sequence 0."""

    def spread(self, n_seq: int) -> None:
        """Sequences 1 .. n_seq - 1 become sequence 0, each in memory of its own."""

    def cache_bytes(self) -> int:
        """Bytes allocated for all caches."""

    def finite(self) -> bool:
        """The last logits hold no NaN and no infinity."""

    def close(self) -> None:
        """Free everything."""


def token_ids(first: int, n: int, n_vocab: int) -> NDArray[np.int32]:
    """Tokens of positions first .. first + n - 1, as llama_peer has them."""
    return ((7919 * np.arange(first, first + n, dtype=np.int64) + 13) % n_vocab).astype(np.int32)


class Ours:
    """pyhysparse, in this process. folder: where a sequence may be saved to copy it."""

    def __init__(self, args: OpenArgs, folder: Path) -> None:
        from pyhysparse import Model, Session, SessionParams

        self.folder = folder
        params = SessionParams(
            n_ctx=args.n_ctx * args.n_seq, n_seq=args.n_seq, n_batch=args.n_ubatch, n_ubatch=args.n_ubatch, type_k=args.cache_type,
            type_v=args.cache_type,
        )  # fmt: skip
        self.model = Model(args.path, n_gpu_layers="all" if args.gpu else 0, fit=params)
        self.session = Session(self.model, params)
        self.rows = np.zeros((args.n_seq, self.model.info.n_vocab), dtype=np.float32)
        self.placement = self.model.info.placement

    def eval(self, seq: int, n: int) -> float:
        ids = token_ids(self.session.length(seq), n, self.model.info.n_vocab)
        start = time.perf_counter()
        self.session.eval(ids, seq, out=self.rows[:1])
        return time.perf_counter() - start

    def decode(self, n_seq: int, steps: int) -> float:
        seqs, rows = np.arange(n_seq, dtype=np.int32), self.rows[:n_seq]
        first = np.array([self.session.length(s) for s in range(n_seq)], dtype=np.int64)
        ids = [((7919 * (first + i) + 13) % self.model.info.n_vocab).astype(np.int32) for i in range(steps)]
        start = time.perf_counter()
        for row in ids:
            self.session.eval(row, seqs, "all", out=rows)
        return time.perf_counter() - start

    def clear(self) -> None:
        self.session.remove(0)

    def spread(self, n_seq: int) -> None:
        path = self.folder / "sequence.hss"
        try:
            self.session.save(path, 0)  # a fork would share the pages, and the device's L2 would serve all sequences at once
            for seq in range(1, n_seq):
                self.session.load(path, seq)
        finally:
            path.unlink(missing_ok=True)

    def cache_bytes(self) -> int:
        memory = self.session.memory
        return memory.pages + memory.rings

    def page_bytes_per_token(self) -> int:
        return self.session.memory.page_bytes_per_token

    def finite(self) -> bool:
        return bool(np.isfinite(self.rows[:1]).all())

    def close(self) -> None:
        self.session.close()
        self.model.close()


class LlamaPeer:
    """llama.cpp, in the process of bench/cuda_peer/llama_peer.cpp."""

    def __init__(self, args: OpenArgs, program: Path) -> None:
        self.process = subprocess.Popen([str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        layers = 999 if args.gpu else 0
        try:
            self.ask(f"open {args.n_ctx} {args.n_seq} {args.n_ubatch} {args.cache_type} {layers} {args.path}")
        except EngineError:
            self.close()
            raise

    def ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise EngineError(f"llama_peer ended with {self.process.wait()} at '{command}'")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineError(f"llama_peer: {answer['error']}")
        return answer

    def eval(self, seq: int, n: int) -> float:
        return float(self.ask(f"eval {seq} {n}")["seconds"])

    def decode(self, n_seq: int, steps: int) -> float:
        return float(self.ask(f"decode {n_seq} {steps}")["seconds"])

    def clear(self) -> None:
        self.ask("rewind 0 0")

    def spread(self, n_seq: int) -> None:
        for seq in range(1, n_seq):
            self.ask(f"copy 0 {seq}")

    def cache_bytes(self) -> int:
        return int(self.ask("memory")["context"])

    def finite(self) -> bool:
        return bool(self.ask("logits")["finite"])

    def close(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
