"""Entry of the `hysparse` command: picks the verb, turns errors into one line and an exit code.

Exit codes: 0 done, 1 an error (one line on stderr), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from pyhysparse import __version__
from pyhysparse.cli.placement import list_devices_option
from pyhysparse.errors import HysparseError

VERBS = {
    "run": "continue one prompt",
    "chat": "talk to a model",
    "convert": "Hugging Face checkpoint -> GGUF",
    "quantize": "write a GGUF with smaller weights",
    "inspect": "layer plan, tensors and cache bytes of a model",
    "perplexity": "perplexity of a text",
    "tokenize": "token ids of a text",
    "bench": "speed of prompts and of generation",
}


class LazyGroup(click.Group):
    """Imports a verb's module when the verb is used, so that `hysparse --help` needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"pyhysparse.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.version_option(__version__, prog_name="hysparse")
@list_devices_option()
def cli() -> None:
    """HySparse sparse-attention models (and Llama, Qwen, MiMo) on this machine. Without -m, `run` and `chat` use the demo model."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    try:
        result = cli.main(args=list(arguments) if arguments is not None else None, prog_name="hysparse", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.UsageError as error:
        error.show()
        return 2
    except click.ClickException as error:
        return fail(error.format_message())
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader is gone: nothing left to say, not at exit either
        return 1
    except (HysparseError, OSError) as error:
        return fail(str(error))
    except ValueError as error:
        if type(error).__name__ != "ConvertError":  # the converter's own class, which is not imported here
            raise
        return fail(str(error))


def fail(message: str) -> int:
    """One line on stderr."""
    print("hysparse: error:", " ".join(message.split()), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
