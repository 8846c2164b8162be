"""`hysparse run`: continue one prompt. The text alone goes to stdout, everything else to stderr."""

from __future__ import annotations

import sys
from typing import Any

import click

from pyhysparse.cli.common import (
    generation_arguments,
    generation_options,
    load_llm,
    log,
    oracle_options,
    prompt_options,
    read_prompt,
    runtime_options,
    source_options,
    timing_line,
)
from pyhysparse.cli.placement import placement_options, show_placement


@click.command("run", context_settings={"help_option_names": ["-h", "--help"]})
@prompt_options()
@click.option("--chat/--raw", "as_chat", default=False, help="Through the chat template, or as it is (default).")
@click.option("-sys", "--system-prompt", "system", help="System message (with --chat).")
@click.option("--chat-template", help="Jinja template instead of the model's own, or 'chatml' (with --chat).")
@click.option("--echo", is_flag=True, help="Write the prompt before its continuation.")
@click.option("--show-timings/--no-show-timings", default=True, help="Speeds on stderr at the end.")
@source_options()
@generation_options()
@runtime_options()
@placement_options()
@oracle_options()
def command(as_chat: bool, system: str | None, chat_template: str | None, echo: bool, show_timings: bool, **options: Any) -> int:
    """Continue a prompt (-p, -f, or standard input) with the demo model, -m FILE or -hf USER/REPO.

    The prompt is continued as it stands; --chat asks it as a user's message instead.
    """
    if (system or chat_template) and not as_chat:
        raise click.UsageError("--system-prompt and --chat-template need --chat")
    prompt = read_prompt(options)
    arguments = generation_arguments(options)
    with load_llm(options, default="demo", chat_template=chat_template) as llm:
        if as_chat:
            messages = [{"role": "system", "content": system}] if system else []
            generation = llm.chat_stream([*messages, {"role": "user", "content": prompt}], **arguments)
        else:
            generation = llm.generate(prompt, **arguments)
        show_placement(llm.model, options["verbose"])
        if echo:
            write(prompt)
        code = 0
        try:
            for piece in generation:
                write(piece)
        except KeyboardInterrupt:
            generation.close()
            code = 130
        if sys.stdout.isatty() and not generation.text.endswith("\n"):
            write("\n")
        if show_timings:
            log(timing_line(generation.timings))
    return code


def write(text: str) -> None:
    """To stdout as UTF-8, whatever the locale says, and at once."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", errors="replace"))
    sys.stdout.buffer.flush()
