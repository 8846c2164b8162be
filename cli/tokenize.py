"""`hysparse tokenize`: the token ids of a text."""

from __future__ import annotations

from typing import Any

import click

from pyhysparse.cli.common import model_path, prompt_options, read_prompt, source_options


@click.command("tokenize", context_settings={"help_option_names": ["-h", "--help"]})
@prompt_options()
@click.option("--ids", "only_ids", is_flag=True, help="One line, [1, 2, 3].")
@click.option("--no-bos", is_flag=True, help="No token for the beginning of the text, even if the model wants it.")
@click.option("--no-parse-special", is_flag=True, help="Read the texts of control tokens as ordinary text.")
@click.option("--show-count", is_flag=True, help="Say how many tokens there are.")
@source_options()
def command(only_ids: bool, no_bos: bool, no_parse_special: bool, show_count: bool, **options: Any) -> None:
    """Token ids of -p, -f or standard input, under the tokenizer of -m FILE (default: the demo model)."""
    from pyhysparse.gguf import GGUFFile
    from pyhysparse.tokenizer import Tokenizer

    text = read_prompt(options)
    with GGUFFile(model_path(options, default="demo")) as file:
        rows = next((t.shape[1] for t in file.tensors if t.name == "token_embd.weight" and len(t.shape) == 2), None)
        tokenizer = Tokenizer.from_metadata(file.metadata, rows)
    ids = tokenizer.encode(text, add_bos=False if no_bos else None, special=not no_parse_special)
    if only_ids:
        click.echo(str(ids))
    else:
        for i in ids:
            piece = tokenizer.token_bytes(i).decode("utf-8", errors="backslashreplace")
            click.echo(f"{i:6d} -> {piece!r}")
    if show_count:
        click.echo(f"Total number of tokens: {len(ids)}")
