"""`hysparse bench`: tokens a second of prompts (pp) and of generation (tg) at given depths, as llama-bench does and prints it."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from pyhysparse.cli.common import (
    model_path,
    oracle_argument,
    oracle_options,
    placement_arguments,
    progress_bar,
    runtime_options,
    show_logs,
    source_options,
    table,
)
from pyhysparse.cli.placement import placement_options, show_placement

if TYPE_CHECKING:
    from pyhysparse.model import Model
    from pyhysparse.session import Session, SessionParams


def sizes(ctx: click.Context, param: click.Parameter, value: str) -> list[int]:
    """llama-bench's lists: "512", "128,512", "128-512+128" (first-last+step), "128-512*2"."""
    out: list[int] = []
    for item in value.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?:([+*])(\d+))?)?", item.strip())
        if match is None:
            raise click.BadParameter(f"{item!r} is no number or range such as 128-512+128", ctx, param)
        first, last = int(match[1]), int(match[2] or match[1])
        sign, step = match[3] or "+", int(match[4] or 1)
        if step < 1 or (sign == "*" and (step < 2 or first < 1)):
            raise click.BadParameter(f"{item!r} has no end", ctx, param)
        n = first
        while n <= last:
            out.append(n)
            n = n + step if sign == "+" else n * step
    return out


def pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[tuple[int, int]]:
    """ "512,128": a prompt and a generation after it."""
    matches = [re.fullmatch(r"(\d+),(\d+)", value) for value in values]
    if None in matches:
        raise click.BadParameter(f"{values[matches.index(None)]!r} is no pair such as 512,128", ctx, param)
    return [(int(match[1]), int(match[2])) for match in matches if match is not None]


@dataclass(frozen=True)
class Result:
    """One test. samples_ts: tokens a second of each repetition. backend: "CPU", or "CUDA" with any layer there; devices: "CUDA0/CUDA1"."""

    model: str
    size_bytes: int
    n_params: int
    backend: str
    n_gpu_layers: int
    devices: str
    placement: str
    n_threads: int
    n_batch: int
    n_ubatch: int
    type_k: str
    type_v: str
    oracle: bool
    n_prompt: int
    n_gen: int
    n_depth: int
    avg_ts: float
    stddev_ts: float
    samples_ts: list[float]

    @property
    def test(self) -> str:
        """llama-bench's name: pp512, tg128, pp512+tg128, tg128 @ d1024."""
        parts = [f"pp{self.n_prompt}"] if self.n_prompt else []
        parts += [f"tg{self.n_gen}"] if self.n_gen else []
        return "+".join(parts) + (f" @ d{self.n_depth}" if self.n_depth else "")


@click.command("bench", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-p", "--n-prompt", callback=sizes, default="512", show_default=True, help="Prompt lengths (0: none).")
@click.option("-n", "--n-gen", callback=sizes, default="128", show_default=True, help="Generation lengths (0: none).")
@click.option("-pg", "pairs", callback=pairs, multiple=True, help="A prompt and a generation, timed together.")
@click.option("-d", "--n-depth", callback=sizes, default="0", show_default=True, help="Tokens in the context before the test.")
@click.option("-r", "--repetitions", type=click.IntRange(1), default=5, show_default=True, help="Runs of each test.")
@click.option("-o", "--output", type=click.Choice(["md", "json", "csv"]), default="md", show_default=True, help="Form of the result.")
@click.option("--no-warmup", is_flag=True, help="Start timing at once.")
@source_options()
@runtime_options(None)
@placement_options()
@oracle_options()
def command(output: str, **options: Any) -> None:
    """Time prompts and generation with random tokens; tokenizing and sampling are not part of it."""
    from pyhysparse.model import Model

    if options["verbose"]:
        show_logs()
    path, oracle = model_path(options, default="demo"), oracle_argument(options)
    tests = plan_of(options)
    fit = session_params(options, max(sum(test) for test in tests))
    arguments = {"use_mmap": not options["no_mmap"], "repack": not options["no_repack"], **placement_arguments(options)}
    with Model(path, oracle=oracle, fit=fit, **arguments) as model:
        show_placement(model, options["verbose"])
        results = run_all(model, options, tests)
    if output == "json":
        click.echo(json.dumps([{**asdict(result), "test": result.test} for result in results], indent=1))
    elif output == "csv":
        click.echo(as_csv(results), nl=False)
    else:
        click.echo(as_markdown(results))


def plan_of(options: dict[str, Any]) -> list[tuple[int, int, int]]:
    """Every test at every depth: tokens of the prompt, tokens to make, tokens before."""
    tests = [(p, 0) for p in options["n_prompt"]] + [(0, n) for n in options["n_gen"]] + options["pairs"]
    tests = [test for test in tests if any(test)]
    plan = [(p, n, depth) for depth in options["n_depth"] for p, n in tests]
    if not plan:
        raise click.UsageError("nothing to do: -p and -n are both 0")
    return plan


def session_params(options: dict[str, Any], n_ctx: int) -> SessionParams:
    from pyhysparse.session import SessionParams

    names = ("n_batch", "n_ubatch", "n_threads", "n_threads_batch", "type_k", "type_v", "use_ref")
    return SessionParams(n_ctx=n_ctx, **{name: options[name] for name in names})


def run_all(model: Model, options: dict[str, Any], plan: list[tuple[int, int, int]]) -> list[Result]:
    results: list[Result] = []
    with progress_bar("bench") as progress:
        for i, (p, n, depth) in enumerate(plan):
            progress(i, len(plan), f"pp{p} tg{n} d{depth}")
            results.append(run_test(model, options, p, n, depth))
    return results


def run_test(model: Model, options: dict[str, Any], n_prompt: int, n_gen: int, depth: int) -> Result:
    from pyhysparse.session import Session

    random = np.random.default_rng(1)
    with Session(model, session_params(options, depth + n_prompt + n_gen)) as session:
        if depth:
            session.eval(random.integers(0, model.info.n_vocab, depth, dtype=np.int32), want="none")
            session.checkpoint()
        if not options["no_warmup"]:
            run_once(session, random, min(n_prompt, 32), min(n_gen, 1), depth)
        samples = [run_once(session, random, n_prompt, n_gen, depth) for _ in range(options["repetitions"])]
        gpus = [row.device for row in session.device_memory() if row.device != "CPU"]
        return Result(
            model=f"{model.info.name or model.info.arch} {model.info.ftype}",
            size_bytes=model.info.weight_bytes,
            n_params=model.info.n_params,
            backend="+".join(sorted({gpu.rstrip("0123456789") for gpu in gpus})) or "CPU",
            n_gpu_layers=model.n_gpu_layers,
            devices="/".join(gpus),
            placement=model.placement,
            n_threads=session.params.n_threads or 0,
            n_batch=session.params.n_batch,
            n_ubatch=session.params.n_ubatch,
            type_k=session.params.type_k,
            type_v=session.params.type_v,
            oracle=model.info.oracle,
            n_prompt=n_prompt,
            n_gen=n_gen,
            n_depth=depth,
            avg_ts=statistics.fmean(samples),
            stddev_ts=statistics.stdev(samples) if len(samples) > 1 else 0.0,
            samples_ts=samples,
        )


def run_once(session: Session, random: np.random.Generator, n_prompt: int, n_gen: int, depth: int) -> float:
    """Tokens a second of one run; the session is back at `depth` tokens before it."""
    session.rewind(depth)
    tokens = random.integers(0, session.n_vocab, n_prompt + n_gen, dtype=np.int32)
    logits = np.empty((1, session.n_vocab), dtype=np.float32)
    start = time.perf_counter()
    if n_prompt:
        session.eval(tokens[:n_prompt], out=logits)
    for i in range(n_prompt, n_prompt + n_gen):
        session.eval(tokens[i : i + 1], out=logits)
    return (n_prompt + n_gen) / (time.perf_counter() - start)


def as_markdown(results: list[Result]) -> str:
    """llama-bench's table; ngl is a column where a GPU is in use."""
    on_gpu = any(r.n_gpu_layers for r in results)
    rows = [
        [
            r.model + (" oracle" if r.oracle else ""),
            f"{r.size_bytes / 2**20:.2f} MiB",
            f"{r.n_params / 1e6:.2f} M",
            r.backend,
            *([str(r.n_gpu_layers)] if on_gpu else []),
            str(r.n_threads),
            r.test,
            f"{r.avg_ts:.2f} ± {r.stddev_ts:.2f}",
        ]
        for r in results
    ]
    header = ["model", "size", "params", "backend", *(["ngl"] if on_gpu else []), "threads", "test", "t/s"]
    return table(header, rows, markdown=True)


def as_csv(results: list[Result]) -> str:
    out = io.StringIO()
    names = ["test", *(name for name in asdict(results[0]) if name != "samples_ts")]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([[getattr(result, name) for name in names] for result in results])
    return out.getvalue()
