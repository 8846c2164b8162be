"""`hysparse chat`: a conversation in the terminal, or over pipes (then without prompts and escape codes)."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyhysparse.cli.common import (
    decode,
    generation_arguments,
    generation_options,
    load_llm,
    log,
    oracle_options,
    read_text,
    runtime_options,
    source_options,
    timing_line,
)
from pyhysparse.cli.placement import placement_options, show_placement
from pyhysparse.cli.run import write
from pyhysparse.errors import HysparseError

if TYPE_CHECKING:
    from pyhysparse.llm import LLM

HELP = """\
/help          this list
/clear         forget the conversation (a system message stays)
/regen         another answer to the last message
/read FILE     add a file's text to the next message
/save FILE     write the conversation (JSON)
/load FILE     go on with a saved one
/exit          leave (also Ctrl-D, or Ctrl-C at the prompt)
A line ending in \\ goes on in the next one. Ctrl-C stops an answer."""


@click.command("chat", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-p", "--prompt", help="First message.")
@click.option("-sys", "--system-prompt", "system", help="System message.")
@click.option("-st", "--single-turn", is_flag=True, help="Leave after the answer to -p.")
@click.option("--chat-template", help="Jinja template instead of the model's own, or 'chatml'.")
@click.option("--show-timings/--no-show-timings", default=True, help="Speeds after each answer.")
@source_options()
@generation_options()
@runtime_options()
@placement_options()
@oracle_options()
def command(
    prompt: str | None, system: str | None, single_turn: bool, chat_template: str | None, show_timings: bool, **options: Any
) -> int:
    """Talk to the demo model, -m FILE or -hf USER/REPO. /help lists the commands."""
    if single_turn and prompt is None:
        raise click.UsageError("--single-turn needs -p")
    arguments = generation_arguments(options)
    with load_llm(options, default="demo", chat_template=chat_template) as llm:
        show_placement(llm.model, options["verbose"])
        chat = Chat(llm, system, arguments, show_timings)
        if chat.terminal:
            info = llm.model.info
            log(f"{info.name or info.arch}, {info.ftype}, {info.n_params / 1e6:.0f}M parameters, context {llm.n_ctx}. /help: commands.")
        if prompt is not None:
            chat.say(prompt)
        if not single_turn:
            chat.loop()
    return 0


class Chat:
    """A conversation: its messages, and the commands on them."""

    def __init__(self, llm: LLM, system: str | None, arguments: dict[str, Any], show_timings: bool) -> None:
        self.llm, self.arguments, self.show_timings = llm, arguments, show_timings
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
        self.attached = ""
        self.terminal = sys.stdin.isatty() and sys.stdout.isatty()
        if self.terminal:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - line editing and history in input()

    def loop(self) -> None:
        """Read and answer until /exit, the end of input, or Ctrl-C at the prompt."""
        while True:
            try:
                line = self.read_message()
            except (EOFError, KeyboardInterrupt):
                if self.terminal:
                    write("\n")
                return
            except UnicodeDecodeError as error:  # from input()
                log(f"hysparse: error: that line is not UTF-8 (byte {error.start})")
                continue
            if not line.strip():
                continue
            if line.startswith("/"):
                if not self.obey(line.strip()):
                    return
            else:
                self.say(line)

    def read_message(self) -> str:
        """One message: lines joined while they end in a backslash."""
        lines: list[str] = []
        while True:
            if self.terminal:
                line = input("> " if not lines else ". ")
            else:
                raw = sys.stdin.buffer.readline()
                if not raw:
                    if lines:
                        return "\n".join(lines)
                    raise EOFError
                line = decode(raw, "standard input").rstrip("\r\n")
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])

    def say(self, text: str) -> None:
        """Add a user's message and answer it. A message that cannot be answered is taken back."""
        content, self.attached = self.attached + text, ""
        self.messages.append({"role": "user", "content": content})
        if not self.answer():
            self.messages.pop()

    def answer(self) -> bool:
        """Generate, show and keep the next answer. Ctrl-C ends it; what was said stays."""
        try:
            generation = self.llm.chat_stream(self.messages, **self.arguments)
        except HysparseError as error:
            log(f"hysparse: error: {error}")
            return False
        try:
            for piece in generation:
                write(piece)
        except KeyboardInterrupt:
            generation.close()
        except HysparseError as error:
            log(f"hysparse: error: {error}")
            return False
        write("\n")
        self.messages.append({"role": "assistant", "content": generation.text.strip()})
        if generation.finish_reason == "length" and len(self.llm.tokens) >= self.llm.n_ctx:
            log(f"the context of {self.llm.n_ctx} tokens is full; /clear starts anew")
        if self.show_timings:
            log(timing_line(generation.timings))
        return True

    def obey(self, line: str) -> bool:
        """Carry out a /command; False to leave."""
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        if name in ("/exit", "/quit"):
            return False
        if name == "/help":
            log(HELP)
        elif name == "/clear":
            self.messages = [m for m in self.messages[:1] if m["role"] == "system"]
            self.llm.reset()
        elif name == "/regen":
            self.regenerate()
        elif name in ("/save", "/load", "/read"):
            if not argument:
                log(f"{name} needs a file name")
            else:
                self.use_file(name, Path(argument).expanduser())
        else:
            log(f"unknown command {name}; /help lists them")
        return True

    def regenerate(self) -> None:
        if not self.messages or self.messages[-1]["role"] != "assistant":
            log("there is no answer yet")
            return
        old = self.messages.pop()
        if not self.answer():
            self.messages.append(old)

    def use_file(self, name: str, path: Path) -> None:
        try:
            if name == "/save":
                save_messages(path, self.messages)
                log(f"saved {len(self.messages)} messages to {path}")
            elif name == "/load":
                self.messages = load_messages(path)
                log(f"loaded {len(self.messages)} messages from {path}")
            else:
                self.attached += read_text(path) + "\n\n"
                log(f"{path} goes with the next message")
        except click.ClickException as error:
            log(f"hysparse: error: {error.message}")
        except OSError as error:
            log(f"hysparse: error: {path}: {error.strerror}")


def save_messages(path: Path, messages: list[dict[str, str]]) -> None:
    """Write them as JSON, under a temporary name first."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"messages": messages}, file, ensure_ascii=False, indent=1)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_messages(path: Path) -> list[dict[str, str]]:
    """Read what save_messages wrote."""
    try:
        data = json.loads(read_text(path))
        messages = data["messages"]
        if not isinstance(messages, list):
            raise TypeError
        return [{"role": str(m["role"]), "content": str(m["content"])} for m in messages]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise click.ClickException(f'{path} is no saved conversation; expected JSON with "messages" of "role" and "content"') from None
