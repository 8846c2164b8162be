"""`hysparse convert`: a Hugging Face checkpoint to a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pyhysparse.cli.common import log, progress_bar, size_text, table


@click.command("convert", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source", metavar="REPO_OR_DIR")
@click.option("-o", "--outfile", required=True, type=click.Path(dir_okay=False, path_type=Path), help="GGUF file to write.")
@click.option("--outtype", type=click.Choice(["f32", "f16", "bf16", "q8_0", "auto"]), default="auto", help="Type of matrices (auto).")
@click.option("--dry-run", is_flag=True, help="Check everything and list the tensors, write nothing.")
@click.option("--split-max-size", metavar="N[M|G]", help="Split into files of at most this size.")
@click.option("--model-name", help="general.name (the folder's name).")
@click.option("--qkv-tp-size", type=click.IntRange(1), help="Tensor-parallel ranks that a fused qkv_proj was written for (MiMo-V2).")
@click.option("-hft", "--hf-token", help="Token for the hub.")
@click.option("--revision", help="Branch, tag or commit on the hub.")
def command(source: str, outfile: Path, hf_token: str | None, revision: str | None, **options: Any) -> None:
    """Convert a checkpoint folder, or user/repo of the Hugging Face hub: families hysparse, llama, qwen2, qwen3, mimo_v2."""
    from pyhysparse.convert.hf_to_gguf import convert, resolve_source

    folder = resolve_source(source, revision=revision, token=hf_token)
    with progress_bar("converting", "bytes") as progress:
        report = convert(
            folder,
            outfile,
            options["outtype"],
            dry_run=options["dry_run"],
            split_max_size=options["split_max_size"],
            progress=progress,
            name=options["model_name"] or (source.rsplit("/", 1)[-1] if not Path(source).is_dir() else None),
            qkv_tp_size=options["qkv_tp_size"],
        )
    for warning in report.warnings:
        log(f"warning: {warning}")
    if report.ignored:
        log(f"left out on purpose: {', '.join(report.ignored)}")
    if report.dry_run:
        rows = [[t.name, " x ".join(map(str, t.shape)), t.type, size_text(t.n_bytes)] for t in report.tensors]
        click.echo(table(["tensor", "shape", "type", "size"], rows))
    verb = "would write" if report.dry_run else "wrote"
    names = ", ".join(str(file) for file in report.files)
    log(f"{verb} {names}: {report.arch}, {report.outtype}, {report.n_params:,} parameters, {size_text(report.n_bytes)}")
