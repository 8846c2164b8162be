"""Perplexity of the demo model on four kinds of text: full attention against oracle mode and against windows alone.

    python bench/perplexity_modes.py --texts FOLDER [--chunks 4] [--modes full,oracle-1024,...] [--needle] [-o md|json|csv]

Method: llama.cpp's, as in `hysparse perplexity` (whose function this calls): the second half of each chunk of 4096 tokens is scored given
what stands before it. Every result goes to --results at once, so an interrupted run goes on where it stopped. FOLDER keeps the texts
(bench/texts.py says where they come from; put your own <kind>.txt there to use others).

Modes (SPEC 5; the full layers are the calibrated list 0,3,7,8,14,18,20,23 of 30, block 64, window 128):
  full             full attention everywhere
  oracle-N         the other layers see N selected tokens, block 0 and the window
  oracle-all       K * B >= context: must equal full
  every4-1024      full layers 0,4,8,... instead of the calibrated ones, n = 1024
  window+first     the other layers see the first token, the window, and one selected token (block 1, K = 1: the least that oracle
                   mode allows)
  window           the other layers see the window alone (bench/window_variant.py)
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from machine import facts
from needle import needles_found
from texts import KINDS, Text, load_texts
from window_variant import make_window_variant

from pyhysparse import LLM
from pyhysparse.cli.perplexity import chunk_scores
from pyhysparse.demo import demo_model

N_CTX, WINDOW = 4096, 128
CALIBRATED = [0, 3, 7, 8, 14, 18, 20, 23]
ORACLE = {"full_layers": CALIBRATED, "block_size": 64, "window": WINDOW}
MODES: dict[str, bool | dict[str, Any]] = {
    "full": False,
    "oracle-1024": {**ORACLE, "top_k_tokens": 1024},
    "oracle-512": {**ORACLE, "top_k_tokens": 512},
    "window": False,
    "oracle-all": {**ORACLE, "top_k_tokens": N_CTX},
    "every4-1024": {**ORACLE, "full_layers": list(range(0, 30, 4)), "top_k_tokens": 1024},
    "window+first": {**ORACLE, "block_size": 1, "top_k_tokens": 1},
}
DEFAULT_MODES = "full,oracle-1024,oracle-512,window"


def open_model(mode: str, texts: Path) -> LLM:
    path = demo_model()
    if mode == "window":
        variant = texts / "window-only.gguf"
        path = variant if variant.exists() else make_window_variant(path, variant, CALIBRATED, WINDOW)
    return LLM(path, n_ctx=N_CTX, oracle=MODES[mode])


def save(path: Path, results: Mapping[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(temporary, path)


def measure(results: dict[str, Any], path: Path, mode: str, texts: list[Text], folder: Path, chunks: int) -> None:
    """Score what is missing of one mode: results["nll"]["kind/mode"] is the mean of each chunk."""
    todo = [t for t in texts if len(results["nll"].get(f"{t.kind}/{mode}", [])) < chunks]
    if not todo:
        return
    with open_model(mode, folder) as llm:
        for text in todo:
            start = time.perf_counter()
            means = [float(scores.mean()) for scores in chunk_scores(llm, text.text, chunks)]
            results["nll"][f"{text.kind}/{mode}"] = means
            save(path, results)
            seconds = time.perf_counter() - start
            print(f"{mode:12} {text.kind:8} PPL {math.exp(float(np.mean(means))):8.4f}  {seconds:5.0f} s", file=sys.stderr, flush=True)


def table(results: Mapping[str, Any], modes: list[str]) -> list[list[str]]:
    """Rows of mode, then a kind's perplexity and its ratio to full."""
    def perplexity(kind: str, mode: str) -> float:
        return math.exp(float(np.mean(results["nll"][f"{kind}/{mode}"])))

    rows = []
    for mode in modes:
        cells = [f"{perplexity(kind, mode):.3f} ({perplexity(kind, mode) / perplexity(kind, 'full'):.3f})" for kind in KINDS]
        found = results["needles"].get(mode)
        rows.append([mode, *cells, f"{found['found']} of {found['asked']}" if found else "-"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--texts", type=Path, required=True, help="folder of the texts, filled where they are missing")
    parser.add_argument("--chunks", type=int, default=4, help="chunks of 4096 tokens of each text (4)")
    parser.add_argument("--modes", default=DEFAULT_MODES, help=f"of {', '.join(MODES)}")
    parser.add_argument("--needle", action="store_true", help="also look for numbers hidden in 4k tokens (bench/needle.py)")
    parser.add_argument("--results", type=Path, help="where to keep results (FOLDER/perplexity.json)")
    parser.add_argument("-o", "--output", choices=("md", "json", "csv"), default="md")
    args = parser.parse_args()
    modes = ["full"] + [mode for mode in args.modes.split(",") if mode != "full"]
    if unknown := sorted(set(modes) - set(MODES)):
        parser.error(f"no mode {unknown[0]!r}; expected some of {', '.join(MODES)}")
    texts = load_texts(args.texts)
    path = args.results or args.texts / "perplexity.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"nll": {}, "needles": {}}
    sources = {t.kind: {"source": t.source, "sha256": t.sha256} for t in texts}
    if results.setdefault("texts", sources) != sources:
        parser.error(f"{path} is about other texts; give another --results")
    results |= {"machine": facts(), "n_ctx": N_CTX, "chunks": args.chunks}
    for mode in modes:
        measure(results, path, mode, texts, args.texts, args.chunks)
        if args.needle and mode not in results["needles"]:
            with open_model(mode, args.texts) as llm:
                filler = next(t.text for t in texts if t.kind == "prose")
                results["needles"][mode] = needles_found(llm, filler, N_CTX - 256)
            save(path, results)
    rows, header = table(results, modes), ["mode", *KINDS, "needles"]
    if args.output == "json":
        print(json.dumps(results, indent=1))
    elif args.output == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows([header, *rows])
    else:
        print("\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]))
        print("\nPerplexity (and its ratio to full attention).", *[f"{t.kind}: {t.source}, sha256 {t.sha256}." for t in texts], sep="\n")


if __name__ == "__main__":
    main()
