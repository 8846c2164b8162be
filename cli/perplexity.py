"""`hysparse perplexity`: llama.cpp's method: the second half of each chunk of -c tokens is scored given what stands before it."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from pyhysparse.cli.common import load_llm, log, oracle_options, prompt_options, read_prompt, runtime_options, source_options
from pyhysparse.cli.placement import placement_options
from pyhysparse.errors import ArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyhysparse.llm import LLM


@click.command("perplexity", context_settings={"help_option_names": ["-h", "--help"]})
@prompt_options()
@click.option("--chunks", type=click.IntRange(-1), default=-1, show_default=True, help="Chunks to score, -1: all.")
@source_options()
@runtime_options(512)
@placement_options()
@oracle_options()
def command(chunks: int, n_ctx: int, **options: Any) -> None:
    """Perplexity of the text of -f FILE (-p, or standard input). Running values go to stderr, the last one to stdout."""
    if chunks == 0:
        raise click.BadParameter("0 chunks have no perplexity; expected at least 1, or -1 for all", param_hint="--chunks")
    text = read_prompt(options)
    with load_llm({**options, "n_ctx": n_ctx}, default="demo") as llm:
        total = squares = 0.0
        count = 0
        for i, scores in enumerate(chunk_scores(llm, text, chunks)):
            total, squares, count = total + float(scores.sum()), squares + float((scores**2).sum()), count + len(scores)
            print(f"[{i + 1}]{math.exp(total / count):.4f},", end="", file=sys.stderr, flush=True)
        log("")
    mean = total / count
    error = math.sqrt(max(squares / count - mean**2, 0.0) / max(count - 1, 1)) * math.exp(mean)
    click.echo(f"Final estimate: PPL = {math.exp(mean):.4f} +/- {error:.5f}")


def chunk_scores(llm: LLM, text: str, chunks: int = -1) -> Iterator[NDArray[np.float64]]:
    """Negative log-likelihoods (nats) of the scored tokens, a chunk at a time.

    As in llama.cpp: the text is cut into chunks of n_ctx tokens; each is evaluated alone, its first token replaced by the model's
    beginning-of-text token where the model wants one, and tokens n_ctx/2 + 1 to n_ctx - 1 are scored. Logits are kept for one ubatch.
    """
    n_ctx, session = llm.n_ctx, llm.session
    tokens = np.asarray(llm.tokenize(text), dtype=np.int32)
    if n_ctx < 4:
        raise ArgumentError(f"the context is {n_ctx} tokens; expected at least 4")
    if len(tokens) < 2 * n_ctx:
        raise ArgumentError(f"the text has {len(tokens)} tokens; expected at least {2 * n_ctx}, two contexts (-c {n_ctx})")
    available = len(tokens) // n_ctx
    first = n_ctx // 2
    step = session.params.n_ubatch
    for chunk in range(available if chunks < 0 else min(chunks, available)):
        ids = tokens[chunk * n_ctx : (chunk + 1) * n_ctx].copy()
        targets = ids.copy()
        if llm.tokenizer.add_bos and llm.tokenizer.bos_id is not None:
            ids[0] = llm.tokenizer.bos_id
        llm.reset()
        scores = np.empty(n_ctx - 1 - first, dtype=np.float64)
        done = 0
        for at in range(0, n_ctx - 1, step):
            part = np.arange(at, min(at + step, n_ctx - 1))
            scored = part[part >= first]
            logits = session.eval(ids[part], want=part >= first)
            scores[done : done + len(scored)] = negative_log_likelihood(logits, targets[scored + 1])
            done += len(scored)
        yield scores


def negative_log_likelihood(logits: NDArray[np.float32], targets: NDArray[np.int32]) -> NDArray[np.float64]:
    """-log softmax(logits)[target], row by row; logits float32 [n, n_vocab]."""
    out = np.empty(len(targets), dtype=np.float64)
    for i, (row, target) in enumerate(zip(logits, targets, strict=True)):
        top = row.max()
        out[i] = float(top) + math.log(float(np.exp(row - top).sum(dtype=np.float64))) - float(row[target])
    return out
