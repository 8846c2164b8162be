"""What the verbs share: option groups with llama.cpp's names, loading a model, progress on a terminal, prompts from -p, -f or stdin."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pyhysparse.generation import Timings
    from pyhysparse.llm import LLM

F = TypeVar("F", bound=Callable[..., Any])
Report = Callable[[int, int, str], None]

CACHE_TYPES = click.Choice(["f32", "f16", "q8_0"])


def apply(options: list[Callable[[F], F]]) -> Callable[[F], F]:
    """Several click options as one decorator, in the order of --help."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def int_list(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    """"0,3,7" -> [0, 3, 7]."""
    try:
        return None if value is None else [int(item) for item in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 0,3,7", ctx, param) from None


def source_options() -> Callable[[F], F]:
    """Which model: -m, -hf."""
    return apply([
        click.option("-m", "--model", help="GGUF file (any shard of a split one), or 'demo'."),
        click.option("-hf", "--hf-repo", metavar="USER/REPO[:QUANT]", help="Model on the Hugging Face hub (Q4_K_M, else Q8_0)."),
        click.option("-hft", "--hf-token", help="Token for the hub."),
        click.option("--offline", is_flag=True, help="Take hub models from the cache only."),
    ])  # fmt: skip


def oracle_options() -> Callable[[F], F]:
    """Oracle mode for stock models."""
    return apply([
        click.option("--oracle", is_flag=True, help="Sparse attention for a stock model, by the list of full layers in its file."),
        click.option("--oracle-layers", callback=int_list, metavar="0,3,7", help="Layers that stay full (implies --oracle)."),
        click.option("--oracle-block-size", type=click.IntRange(1), metavar="N", help="Tokens a block (64)."),
        click.option("--oracle-top-k-tokens", type=click.IntRange(1), metavar="N", help="Tokens selected (1024)."),
        click.option("--oracle-window", type=click.IntRange(1), metavar="N", help="Last positions always attended (128)."),
    ])  # fmt: skip


def runtime_options(ctx_size: int | None = 0) -> Callable[[F], F]:
    """How it runs: context, batches, threads, cache types. ctx_size None leaves out -c."""
    text = "Context, 0: the model's."
    context = [click.option("-c", "--ctx-size", "n_ctx", type=click.IntRange(0), default=ctx_size, show_default=True, help=text)]
    return apply([
        *([] if ctx_size is None else context),
        click.option("-b", "--batch-size", "n_batch", type=click.IntRange(1), default=2048, show_default=True, help="Logical batch."),
        click.option("-ub", "--ubatch-size", "n_ubatch", type=click.IntRange(1), default=512, show_default=True, help="Physical batch."),
        click.option("-t", "--threads", "n_threads", type=click.IntRange(1), help="Threads (physical cores)."),
        click.option("-tb", "--threads-batch", "n_threads_batch", type=click.IntRange(1), help="Threads for prompts (as -t)."),
        click.option("-ctk", "--cache-type-k", "type_k", type=CACHE_TYPES, default="f16", show_default=True, help="Type of cached keys."),
        click.option("-ctv", "--cache-type-v", "type_v", type=CACHE_TYPES, default="f16", show_default=True, help="Type of cached values."),
        click.option("--no-mmap", is_flag=True, help="Read the file instead of mapping it."),
        click.option("--no-repack", is_flag=True, help="Keep weights in the file's layout."),
        click.option("--check-tensors", is_flag=True, help="Refuse weights that are NaN or infinite."),
        click.option("-v", "--verbose", is_flag=True, help="Everything that the runtime has to say, on stderr."),
        click.option("--ref", "use_ref", is_flag=True, help="Scalar reference ops instead of the kernels (to find a wrong kernel)."),
    ])  # fmt: skip


SAMPLING = (
    ("-s", "--seed", "seed", int, "Seed (-1: random)."),
    (None, "--temp", "temperature", float, "Temperature, 0: greedy (0.8)."),
    (None, "--dynatemp-range", "dynatemp_range", float, "Dynamic temperature range (0)."),
    (None, "--dynatemp-exp", "dynatemp_exponent", float, "Dynamic temperature exponent (1)."),
    (None, "--top-k", "top_k", int, "Keep the k most probable, 0: all (40)."),
    (None, "--top-p", "top_p", float, "Keep this much probability (0.95)."),
    (None, "--min-p", "min_p", float, "Drop below this share of the best (0.05)."),
    (None, "--top-nsigma", "top_n_sigma", float, "Keep within n standard deviations of the best logit (-1: off)."),
    (None, "--typical", "typ_p", float, "Locally typical sampling (1: off)."),
    (None, "--xtc-probability", "xtc_probability", float, "Chance of leaving out the top choices (0)."),
    (None, "--xtc-threshold", "xtc_threshold", float, "Probability from which XTC leaves out (0.1)."),
    (None, "--repeat-last-n", "penalty_last_n", int, "Tokens that penalties look back on (64; -1: all)."),
    (None, "--repeat-penalty", "penalty_repeat", float, "Repetition penalty (1: off)."),
    (None, "--presence-penalty", "penalty_present", float, "Presence penalty (0)."),
    (None, "--frequency-penalty", "penalty_freq", float, "Frequency penalty (0)."),
    (None, "--dry-multiplier", "dry_multiplier", float, "DRY strength (0: off)."),
    (None, "--dry-base", "dry_base", float, "DRY base (1.75)."),
    (None, "--dry-allowed-length", "dry_allowed_length", int, "Repeats that DRY allows (2)."),
    (None, "--dry-penalty-last-n", "dry_penalty_last_n", int, "Tokens that DRY looks back on (64; -1: all)."),
    (None, "--mirostat", "mirostat", int, "Mirostat 1 or 2 (0: off)."),
    (None, "--mirostat-ent", "mirostat_tau", float, "Mirostat target entropy (5)."),
    (None, "--mirostat-lr", "mirostat_eta", float, "Mirostat learning rate (0.1)."),
    (None, "--sampler-seq", "samplers", str, 'Order of the chain ("edskypmxt").'),
)


def generation_options() -> Callable[[F], F]:
    """How long and how to sample."""
    options = [
        click.option("-n", "--predict", "max_tokens", type=click.IntRange(-1), default=-1, help="Tokens to make (-1: no limit)."),
        click.option("-r", "--reverse-prompt", "stop", multiple=True, help="Stop at this text (may be given several times)."),
        click.option("--ignore-eos", is_flag=True, help="Go on past the end of the text."),
        click.option("--special", is_flag=True, help="Write control tokens too."),
    ]
    for short, long, name, kind, text in SAMPLING:
        names = [short, long, name] if short else [long, name]
        options.append(click.option(*names, type=kind, default=None, help=text))
    return apply(options)


def generation_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of LLM.generate() that were given."""
    given = {name: options[name] for _, _, name, _, _ in SAMPLING if options.get(name) is not None}
    return {**{name: options[name] for name in ("max_tokens", "ignore_eos", "special")}, "stop": list(options["stop"]), **given}


def model_path(options: dict[str, Any], default: str | None = None) -> Path:
    """The file that -m or -hf names, downloaded if need be."""
    model, repo = options.get("model") or default, options.get("hf_repo")
    if options.get("model") and repo:
        raise click.UsageError("give either -m or -hf")
    if repo:
        from pyhysparse.hub import fetch_gguf

        return fetch_gguf(repo, token=options.get("hf_token"), offline=options.get("offline", False))
    if model is None:
        raise click.UsageError("no model: give -m FILE, -m demo or -hf USER/REPO")
    if model == "demo":
        from pyhysparse.demo import demo_model

        return demo_model(log=log)
    return Path(model)


def oracle_argument(options: dict[str, Any]) -> bool | dict[str, Any]:
    """The `oracle` argument of LLM from the --oracle options."""
    given = {key: options[f"oracle_{key}"] for key in ("block_size", "top_k_tokens", "window") if options.get(f"oracle_{key}") is not None}
    if options.get("oracle_layers") is not None:
        given["full_layers"] = options["oracle_layers"]
    if given and not options.get("oracle") and "full_layers" not in given:
        raise click.UsageError("--oracle-block-size, --oracle-top-k-tokens and --oracle-window need --oracle or --oracle-layers")
    return given or bool(options.get("oracle"))


def placement_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of Model and LLM from the options of pyhysparse.cli.placement."""
    return {name: options[name] for name in ("n_gpu_layers", "cpu_moe", "n_cpu_moe", "devices", "tensor_split") if name in options}


def load_llm(options: dict[str, Any], default: str | None = None, **overrides: Any) -> LLM:
    """The model with everything that the option groups say."""
    path = model_path(options, default)
    oracle = oracle_argument(options)
    names = ("n_ctx", "n_batch", "n_ubatch", "n_threads", "n_threads_batch", "type_k", "type_v", "use_ref", "check_tensors")
    arguments = {name: options[name] for name in names if name in options}
    arguments |= {"use_mmap": not options.get("no_mmap"), "repack": not options.get("no_repack")}
    arguments |= {**placement_arguments(options), **overrides}
    if options.get("verbose"):
        show_logs()
    from pyhysparse.llm import LLM

    with progress_bar("loading") as report:
        return LLM(path, oracle=oracle, progress=lambda fraction: report(round(fraction * 1000), 1000, ""), **arguments)


@contextmanager
def progress_bar(title: str, unit: str = "") -> Iterator[Report]:
    """A progress bar on stderr when that is a terminal, else nothing. Yields report(done, total, name)."""
    if not sys.stderr.isatty():
        yield lambda done, total, name: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()]
    if unit == "bytes":
        columns.append(DownloadColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)

        def report(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=f"{title} {name[:40]}")

        yield report


def show_logs() -> None:
    """The runtime's messages of every level on stderr."""
    import logging

    from pyhysparse.logs import logs_to_logging

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    logging.getLogger("pyhysparse").setLevel(logging.DEBUG)
    logs_to_logging()


def log(message: str) -> None:
    """A line on stderr."""
    print(message, file=sys.stderr, flush=True)


def timing_line(timings: Timings) -> str:
    """llama.cpp's line after a turn."""
    return f"[ Prompt: {timings.prompt_per_second:.1f} t/s | Generation: {timings.generation_per_second:.1f} t/s ]"


def prompt_options() -> Callable[[F], F]:
    """A text: -p, -f, or standard input."""
    return apply([
        click.option("-p", "--prompt", help="The text."),
        click.option("-f", "--file", "prompt_file", type=click.Path(), help="Read the text from a file (-: standard input)."),
    ])  # fmt: skip


def read_prompt(options: dict[str, Any]) -> str:
    """The text of -p or -f, else of standard input when that is no terminal."""
    text, file = options.get("prompt"), options.get("prompt_file")
    if text is not None and file is not None:
        raise click.UsageError("give either -p or -f")
    if text is not None:
        return str(text)
    if file is not None and file != "-":
        return read_text(Path(file))
    if file is None and sys.stdin.isatty():
        raise click.UsageError("no text: give -p TEXT, -f FILE, or pipe it in")
    return decode(sys.stdin.buffer.read(), "standard input")


def read_text(path: Path) -> str:
    """A file as text."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from None
    return decode(data, str(path))


def decode(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{what} is not UTF-8 (byte {error.start})") from None


def size_text(n: float) -> str:
    """Bytes for people: 1.5 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.2f} {unit}"
        n /= 1024
    return ""


def table(header: list[str], rows: list[list[str]], markdown: bool = False) -> str:
    """Columns of equal width; numbers to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    numeric = [all(row[i][:1].isdigit() or row[i] in ("", "-") for row in rows) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        padded = [cell.rjust(w) if number else cell.ljust(w) for cell, w, number in zip(cells, widths, numeric, strict=True)]
        return "| " + " | ".join(padded) + " |" if markdown else "  ".join(padded).rstrip()

    lines = [line(header)]
    if markdown:
        rules = ("-" * (w + 1) + ":" if number else "-" * (w + 2) for w, number in zip(widths, numeric, strict=True))
        lines.append("|" + "|".join(rules) + "|")
    return "\n".join(lines + [line(row) for row in rows])
