"""`hysparse quantize`: write a GGUF with smaller weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pyhysparse.cli.common import log, progress_bar, size_text


@click.command("quantize", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("infile", metavar="IN.gguf", type=click.Path(path_type=Path))
@click.argument("outfile", metavar="OUT.gguf", type=click.Path(path_type=Path))
@click.argument("kind", metavar="TYPE")
@click.argument("threads", metavar="[NTHREADS]", type=click.IntRange(1), required=False)
@click.option("--allow-requantize", is_flag=True, help="Take weights that are quantised already.")
@click.option("--leave-output-tensor", is_flag=True, help="Keep output.weight as it is.")
@click.option("--pure", is_flag=True, help="One type for all matrices, no mix.")
@click.option("--output-tensor-type", metavar="TYPE", help="Type of output.weight.")
@click.option("--token-embedding-type", metavar="TYPE", help="Type of token_embd.weight.")
@click.option("--dry-run", is_flag=True, help="Say how large it would be, write nothing.")
def command(infile: Path, outfile: Path, kind: str, threads: int | None, dry_run: bool, **options: Any) -> None:
    """Write IN.gguf as TYPE to OUT.gguf.

    Types: Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ4_NL IQ4_XS F16 BF16 F32 COPY.
    """
    from pyhysparse.gguf import GGUFFile
    from pyhysparse.quantizing import quantize

    with GGUFFile(infile) as file:
        before = file.n_bytes
    with progress_bar("quantising", "bytes") as progress:
        size = quantize(infile, outfile, kind.upper(), n_threads=threads, dry_run=dry_run, progress=progress, **options)
    log(f"{infile} {size_text(before)} -> {outfile} {size_text(size)} ({100 * size / before:.1f} %){', not written' if dry_run else ''}")
