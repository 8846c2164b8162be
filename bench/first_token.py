"""From opening the model file to the logits of a short prompt, in a process that has only imported the library.

    python bench/first_token.py WAY MODEL.gguf N_THREADS N_CTX       one sample, in seconds; WAY: session, LLM or llama.cpp

session: Model and Session, token ids in, logits out. LLM: the class of that name, text in, the first piece of text out, the tokenizer read.
llama.cpp: its low-level calls. bench/vs_llamacpp.py takes samples of all three in turn, the file in the page cache.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from engines import EngineSpec, LlamaCpp, Ours

__all__ = ["WAYS", "sample"]

WAYS = ("session", "LLM", "llama.cpp")
N_PROMPT = 16
PROMPT = "The capital of France is Paris, and the capital of Italy is"


def once(way: str, path: str, n_threads: int, n_ctx: int) -> float:
    """Seconds, in this process. What a library imports when it is imported is not counted; what it imports later is."""
    if way == "LLM":
        from pyhysparse import LLM

        start = time.perf_counter()
        llm = LLM(path, n_ctx=n_ctx, n_threads=n_threads)
        next(iter(llm.generate(PROMPT, max_tokens=1, temperature=0.0)), None)
        return time.perf_counter() - start
    if way == "llama.cpp":
        import llama_cpp  # noqa: F401
    else:
        import pyhysparse  # noqa: F401
    spec = EngineSpec(way, path, n_ctx, 512, n_threads)
    tokens = np.arange(100, 100 + N_PROMPT, dtype=np.int32)
    start = time.perf_counter()
    engine = LlamaCpp(spec) if spec.is_peer else Ours(spec)
    engine.eval(tokens)
    engine.logits()
    return time.perf_counter() - start


def sample(way: str, path: Path, n_threads: int, n_ctx: int, site: str) -> float:
    """`once` in a fresh process. site: the peer's folder ("": as installed). Raises RuntimeError with its last words."""
    from peer import environment  # here: a sample's own process must not import more than it uses

    command = [sys.executable, __file__, way, str(path), str(n_threads), str(n_ctx)]
    done = subprocess.run(command, env=environment(site), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{way} on {path.name} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return float(done.stdout.split()[-1])


def main() -> None:
    if len(sys.argv) != 5 or sys.argv[1] not in WAYS:
        sys.exit(__doc__)
    print(once(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))


if __name__ == "__main__":
    main()
