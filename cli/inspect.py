"""`hysparse inspect`: what a model is made of: layer plan, tensors, metadata, and the bytes of its caches."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pyhysparse.cli.common import (
    CACHE_TYPES,
    model_path,
    oracle_argument,
    oracle_options,
    placement_arguments,
    size_text,
    source_options,
    table,
)
from pyhysparse.cli.placement import placement_options

if TYPE_CHECKING:
    from pyhysparse.gguf import Metadata
    from pyhysparse.model import LayerInfo, MemoryUse, Model


@click.command("inspect", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", metavar="[MODEL]", required=False)
@click.option("-c", "--ctx-size", "n_ctx", type=click.IntRange(0), default=0, help="Context for the cache bytes (0: the model's).")
@click.option("-np", "--parallel", "n_seq", type=click.IntRange(1), default=1, help="Sequences (1), each with rings of its own.")
@click.option("-ub", "--ubatch-size", "n_ubatch", type=click.IntRange(1), default=512, help="Physical batch (512), part of a ring.")
@click.option("-ctk", "--cache-type-k", "type_k", type=CACHE_TYPES, default="f16", show_default=True, help="Type of cached keys.")
@click.option("-ctv", "--cache-type-v", "type_v", type=CACHE_TYPES, default="f16", show_default=True, help="Type of cached values.")
@click.option("--tensors", is_flag=True, help="List the tensors.")
@click.option("--metadata", is_flag=True, help="List the key/value pairs.")
@click.option("--json", "as_json", is_flag=True, help="Everything as one JSON object.")
@source_options()
@oracle_options()
@placement_options("0")
def command(file: str | None, tensors: bool, metadata: bool, as_json: bool, **options: Any) -> None:
    """Describe a GGUF file: MODEL, -m FILE or -hf USER/REPO. With -ngl also what would lie on which GPU (the weights are copied there)."""
    from pyhysparse.model import Model
    from pyhysparse.session import SessionParams

    if file and options.get("model"):
        raise click.UsageError("give MODEL once")
    options["model"] = file or options.get("model")
    caches = {name: options[name] for name in ("n_ctx", "n_seq", "n_ubatch", "type_k", "type_v")}
    params = SessionParams(**caches)
    with Model(model_path(options), repack=False, oracle=oracle_argument(options), fit=params, **placement_arguments(options)) as model:
        n_ctx = options["n_ctx"] or model.info.n_ctx_train
        memory = model.memory_plan(params)
        if as_json:
            click.echo(json.dumps(as_object(model, memory, n_ctx), ensure_ascii=False, indent=1))
            return
        click.echo("\n".join(model_lines(model)))
        click.echo("\n" + layer_table(model.layers, devices=model.n_gpu_layers > 0))
        click.echo("\n" + "\n".join(memory_lines(memory, n_ctx, params.n_seq, params.type_k, params.type_v)))
        if tensors:
            rows = [[t.name, " x ".join(map(str, t.shape)), t.type, size_text(t.size)] for t in model.gguf.tensors]
            click.echo("\n" + table(["tensor", "shape", "type", "size"], rows))
        if metadata:
            kv = model.gguf.metadata
            click.echo("\n" + table(["key", "type", "value"], [[key, kv.type_of(key), short(kv, key)] for key in kv]))


def model_lines(model: Model) -> list[str]:
    info = model.info
    lines = [
        f"{info.name or '(no name)'}: {info.arch}, {info.ftype}, {info.n_params:,} parameters, {size_text(model.gguf.n_bytes)}",
        f"{info.n_layer} layers, width {info.n_embd}, {info.n_head} heads, vocabulary {info.n_vocab}, trained context {info.n_ctx_train}",
    ]
    if info.n_expert:
        lines.append(f"{info.n_expert_used} of {info.n_expert} experts")
    if info.block_size:
        mode = "oracle mode: " if info.oracle else ""
        lines.append(f"{mode}blocks of {info.block_size} tokens, {info.top_k_blocks} selected, window {info.window}")
    elif info.window:
        lines.append(f"window {info.window}")
    if info.n_gpu_layers:
        lines.append(f"{info.n_gpu_layers} of {info.n_layer + 1} layers on GPUs, with caches of this context:")
        lines += [f"  {part}" for part in info.placement.split("; ")]
    return lines


def layer_table(layers: list[LayerInfo], devices: bool = False) -> str:
    """The layer plan, a row a layer. devices: with a column for where each lies."""
    rows = []
    for i, layer in enumerate(layers):
        extras = [name for name, on in (("sinks", layer.sinks), ("sparse sinks", layer.sparse_sinks), ("qk norm", layer.qk_norm)) if on]
        rows.append([
            str(i),
            layer.kind,
            "-" if layer.kv_source < 0 else str(layer.kv_source),
            "-" if layer.selection_source < 0 else str(layer.selection_source),
            "yes" if layer.emits_scores else "-",
            layer.local + (f" {layer.window}" if layer.window else ""),
            " ".join(name for name, on in (("pages", layer.owns_pages), ("ring", layer.owns_ring)) if on) or "-",
            f"{layer.n_head}/{layer.n_head_kv}",
            str(layer.head_dim_k) if layer.head_dim_k == layer.head_dim_v else f"{layer.head_dim_k}/{layer.head_dim_v}",
            f"{layer.n_rot} @ {layer.rope_freq_base:g}",
            layer.gate,
            "moe" if layer.moe else "dense",
            ", ".join(extras) or "-",
            *([layer.device + (", experts CPU" if layer.cpu_moe else "")] if devices else []),
        ])  # fmt: skip
    header = ["layer", "kind", "kv from", "blocks from", "scores", "local", "owns", "heads", "head dim", "rope", "gate", "ffn", "also"]
    header += ["device"] if devices else []
    return table(header, rows)


def memory_lines(memory: MemoryUse, n_ctx: int, n_seq: int, type_k: str, type_v: str) -> list[str]:
    full = memory.full_attention_bytes_per_token
    ratio = memory.full_attention_bytes_per_token / memory.page_bytes_per_token if memory.page_bytes_per_token else 0.0
    return [
        f"cache at context {n_ctx}, {n_seq} sequence{'s' if n_seq > 1 else ''}, K {type_k}, V {type_v}:",
        f"  pages   {memory.pages:>14,} bytes ({size_text(memory.pages)}; {memory.n_pages} of {memory.page_size} tokens)",
        f"  rings   {memory.rings:>14,} bytes ({size_text(memory.rings)})",
        f"  a token {memory.page_bytes_per_token:>14,} bytes; full attention everywhere: {full:,} ({ratio:.1f}x)",
    ]


def as_object(model: Model, memory: MemoryUse, n_ctx: int) -> dict[str, Any]:
    """Everything as JSON; arrays of over 64 elements by their length."""
    kv = model.gguf.metadata
    return {
        "model": asdict(model.info),
        "layers": [asdict(layer) for layer in model.layers],
        "context": n_ctx,
        "memory": asdict(memory),
        "file_bytes": model.gguf.n_bytes,
        "tensors": [asdict(tensor) for tensor in model.gguf.tensors],
        "metadata": {key: value_or_length(kv, key) for key in kv},
    }


def value_or_length(kv: Metadata, key: str) -> Any:
    n = kv.array_length(key)
    return kv[key] if n <= 64 else {"type": kv.type_of(key), "length": n}


def short(kv: Metadata, key: str) -> str:
    """A value in one line."""
    if kv.array_length(key) > 8:
        return f"{kv.array_length(key)} elements"
    text = repr(kv[key])
    return text if len(text) <= 80 else text[:77] + "..."
