"""The tables of bench/cuda.py: the issue's targets with what was reached, and everything that was timed."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from cuda_ops import Lengths, OpRow, op_rows, spec

__all__ = ["Target", "markdown", "rates", "rows", "targets"]


@dataclass(frozen=True)
class Target:
    """A row of the table. values as text; met: the minimum was reached (None: there is none, or it was not measured)."""

    what: str
    minimum: str
    aim: str
    reached: str
    met: bool | None
    aim_met: bool | None

    @property
    def verdict(self) -> str:
        if self.met is None and self.aim_met is None:
            return "" if self.reached != "not measured" else "**not measured**"
        if self.aim_met:
            return "aim"
        return "**missed**" if self.met is False else "met" if self.met else "aim missed"


def at_least(what: str, value: float | None, minimum: float | None, aim: float | None, unit: str, note: str = "") -> Target:
    return compared(what, value, minimum, aim, unit, note, 1)


def at_most(what: str, value: float | None, minimum: float | None, aim: float | None, unit: str, note: str = "") -> Target:
    return compared(what, value, minimum, aim, unit, note, -1)


def compared(what: str, value: float | None, minimum: float | None, aim: float | None, unit: str, note: str, sign: int) -> Target:
    def text(x: float | None, mark: str) -> str:
        return "" if x is None else f"{mark}{x:.3g}{unit}"

    def holds(limit: float | None) -> bool | None:
        return None if value is None or limit is None else sign * value >= sign * limit

    mark = "≥ " if sign > 0 else "≤ "
    reached = "not measured" if value is None else f"{value:.3g}{unit}{note}"
    return Target(what, text(minimum, mark), text(aim, mark), reached, holds(minimum), holds(aim))


def rates(results: dict[str, Any]) -> dict[str, float]:
    """Medians over all passes of cuda_floors.py: work a second by job."""
    out: dict[str, float] = {}
    passes = [p["jobs"] for p in results.get("floors", [])]
    for name in {name for jobs in passes for name in jobs}:
        us = [u for jobs in passes for u in jobs.get(name, {}).get("us", [])]
        if us:
            out[name] = next(jobs[name]["work"] for jobs in passes if "work" in jobs.get(name, {})) / statistics.median(us) * 1e6
    reads = [out[name] for name in ("read_sum", "read_max") if name in out]
    if reads:
        out["read"] = max(reads)
    return out


def rows(results: dict[str, Any]) -> dict[str, OpRow]:
    rate = rates(results)
    return op_rows(results.get("ops", []), rate.get("read", float("nan")), rate.get("matmul", float("nan")))


def per_round(a: OpRow | None, b: OpRow | None) -> float | None:
    """Median over the rounds of a's time over b's."""
    return statistics.median(x / y for x, y in zip(a.round_us, b.round_us, strict=True)) if a and b else None


def speedup(models: dict[str, Any], key: str, row: str) -> tuple[float | None, str]:
    """Times the peer's speed, and both speeds in words."""
    found = models.get(key, {}).get(row)
    if not found or "peer" not in found["seconds"]:
        return None, ""
    ours, peer = found["seconds"]["ours"], found["seconds"]["peer"]
    n = found["tokens"]
    return (statistics.median(p / o for o, p in zip(ours, peer, strict=True)),
            f" ({n / statistics.median(ours):.0f} against {n / statistics.median(peer):.0f} tokens/s)")  # fmt: skip


def op_targets(results: dict[str, Any], n: Lengths) -> list[Target]:
    found, rate = rows(results), rates(results)
    prefill, decode, sparse = f"{n.prefill}@{n.prefill}", f"1@{n.long}", f"{n.prefill}@{n.long}"

    def row(kind: str, at: str, cache: str = "f16") -> OpRow | None:
        return found.get(spec(kind, n.heads, at, cache))

    full, full_decode = row("full", prefill), row("full", decode)
    ratio = full.ratio if full else None
    out = [at_least(f"full attention prefill, {n.prefill} causal, with scores, against ggml without", ratio, 2, None, "x")]
    cudnn = rate.get("cudnn")
    note = f" ({full.tflop_per_s:.0f} against {cudnn * 1e-12:.0f} TFLOP/s)" if full and cudnn else ""
    ratio = full.tflop_per_s * 1e12 / cudnn if full and cudnn else None
    out.append(at_least("the same against torch's cuDNN attention", ratio, None, 1, "x", note))
    note = f" ({full_decode.gb_per_s:.0f} GB/s)" if full_decode else ""
    value = full_decode.gb_per_s * 1e11 / rate["read"] if full_decode and "read" in rate else None
    out.append(at_least(f"full attention decode, {n.long} keys, with scores, of the read rate", value, 85, 92, " %", note))
    for name, at in (("prefill", prefill), ("decode", decode)):
        cost = per_round(row("full", at), row("full-noscores", at))
        out.append(at_most(f"cost of the scores, {name}", None if cost is None else 100 * (cost - 1), 3, 1, " %"))
    select = row("select", decode, "f32")
    out.append(at_most(f"block selection of {n.long // 64} blocks, decode", select.us if select else None, 10, None, " us"))
    lengths = [row("sparse", f"1@{keys}") for keys in (n.short, n.long, n.longest)]
    times = [r.us for r in lengths if r]
    note = f" ({', '.join(f'{us:.1f}' for us in times)} us)"
    spread = 100 * (max(times) / min(times) - 1) if len(times) == 3 else None
    out.append(at_most("sparse op, decode, difference between the lengths", spread, 5, None, " %", note))
    out.append(at_most("sparse op, decode, the slowest", max(times) if len(times) == 3 else None, None, 15, " us"))
    for kind, words in (("sparse", "selections as a model's"), ("sparse-random", "random selections")):
        r = row(kind, sparse)
        out.append(at_least(f"sparse op, prefill of {n.prefill} at {n.long}, {words}", r.tflop_per_s if r else None, 250, 400, " TFLOP/s"))
    return out


def model_targets(results: dict[str, Any]) -> list[Target]:
    models = results.get("models", {})
    out = []
    for what, key, row, minimum, aim in (
        ("7B shape, Q4_K_M, decode at 128k, against llama.cpp", "7b-q4", "decode_long", 2.5, 3.4),
        ("the same at 4k", "7b-q4", "decode_short", 1.0, 1.2),
        ("7B shape, prefill of 32k", "7b-q4", "prefill_middle", 1.5, None),
        ("7B shape, prefill of 128k", "7b-q4", "prefill_long", 2.5, None),
        ("batch of 16 sequences at 32k, tokens/s in all", "7b-batch", "decode", 3.0, None),
        ("7B shape, F16, decode at 128k", "7b-f16", "decode_long", None, None),
    ):
        value, note = speedup(models, key, row)
        if key == "7b-batch" and value is not None:
            note += f", {models[key]['cache_type']} caches"
        out.append(at_least(what, value, minimum, aim, "x", note))
    for key, bytes_expected in (("7b-q4", 40960), ("80b", 10240)):
        m = models.get(key, {})
        value = m.get("page_bytes_per_token")
        caches = m.get("cache_bytes", {})
        note = "" if value is None else f", {caches['ours']:,} B allocated for {m['n_ctx']} tokens" + (
            f" (llama.cpp {caches['peer']:,})" if "peer" in caches else "")  # fmt: skip
        reached = "not measured" if value is None else f"{value} B a token{note}"
        met = None if value is None else value == bytes_expected
        out.append(Target(f"{key}: bytes of caches", f"{bytes_expected} B a token", "", reached, met, None))
    big = models.get("80b", {})
    if "decode_long" in big:
        p, d = big["prefill_long"], big["decode_long"]
        decode = d["tokens"] / statistics.median(d["seconds"]["ours"])
        speed = f"prompt {p['tokens'] / p['seconds']['ours'][0]:.0f}, decode {decode:.1f} tokens/s"
        out.append(Target("80B-A3B shape, Q4_0, at 128k", "runs", "", speed, bool(big["finite"]["ours"]), None))
    else:
        out.append(Target("80B-A3B shape, Q4_0, at 128k", "runs", "", "not measured", None, None))
    return out


def targets(results: dict[str, Any], lengths: Lengths) -> list[Target]:
    return op_targets(results, lengths) + model_targets(results)


def markdown(results: dict[str, Any], lengths: Lengths) -> str:
    """All tables."""
    rate = rates(results)
    names = {"read": "read", "copy": "copy, read and written"}
    lines = ["| target | minimum | aim | reached | verdict |", "|---|---|---|---|---|"]
    lines += [f"| {t.what} | {t.minimum} | {t.aim} | {t.reached} | {t.verdict} |" for t in targets(results, lengths)]
    lines += ["", "| what the card does | |", "|---|---|"]
    lines += [f"| {words} | {rate[name] * 1e-9:.0f} GB/s |" for name, words in names.items() if name in rate]
    for name, words in (("matmul", "f16 product of 8192-cubed"), ("cudnn", "torch's cuDNN attention"), ("flash", "torch's FlashAttention")):
        if name in rate:
            lines.append(f"| {words} | {rate[name] * 1e-12:.0f} TFLOP/s |")
    lines += ["", "| op | us | GB/s | TFLOP/s | of the floor | ggml's time over it | NMSE |", "|---|---|---|---|---|---|---|"]
    for r in rows(results).values():
        ratio = "" if r.ratio is None else f"{r.ratio:.2f}x"
        nmse = "" if r.nmse is None else f"{r.nmse:.1e}"
        lines.append(f"| {r.spec} | {r.us:.1f} | {r.gb_per_s:.0f} | {r.tflop_per_s:.1f} | {100 * r.floor:.0f} % | {ratio} | {nmse} |")
    failed = [f"{g['group']}: {g['error']}" for g in results.get("ops", []) if "error" in g]
    failed += [f"{s['step']}: {s.get('error') or s['skipped']}" for s in results.get("steps", []) if "error" in s or "skipped" in s]
    if failed:
        lines += ["", "Not measured:", *(f"* {line}" for line in failed)]
    card = results.get("card", {})
    facts = ", ".join(str(v) for v in card.values())
    lines += ["", f"{facts}. Medians of {results.get('rounds')} rounds; prompts of 128k once. Ratios are medians of the rounds' ratios."]
    return "\n".join(lines)
