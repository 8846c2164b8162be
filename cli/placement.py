"""What the verbs share about GPUs: llama.cpp's options for placing a model, --list-devices, and saying what lies where."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from pyhysparse.cli.common import F, apply, log

if TYPE_CHECKING:
    from pyhysparse.model import Model


def layer_count(ctx: click.Context, param: click.Parameter, value: str) -> int | str:
    """"auto", "all" or a number of layers."""
    if value in ("auto", "all"):
        return value
    if not value.isdecimal() or int(value) >= 2**31:
        raise click.BadParameter(f"{value!r} is no number of layers from 0 on, 'auto' or 'all'", ctx, param)
    return int(value)


def share_list(ctx: click.Context, param: click.Parameter, value: str | None) -> list[float] | None:
    """"3,1" or "3/1" -> [3.0, 1.0]."""
    try:
        return None if value is None else [float(item) for item in value.replace("/", ",").split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of shares such as 3,1", ctx, param) from None


def print_devices(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """The GPUs that -dev takes, as llama.cpp lists them."""
    if not value or ctx.resilient_parsing:
        return
    from pyhysparse.placement import devices

    gpus = [device for device in devices() if device.name != "CPU"]
    click.echo("Available devices:")
    for d in gpus:
        click.echo(f"  {d.name}: {d.description} ({d.memory_total // 2**20} MiB, {d.memory_free // 2**20} MiB free)")
    if not gpus:
        click.echo("  (none)")
    ctx.exit(0)


def list_devices_option() -> Callable[[F], F]:
    """--list-devices."""
    text = "List the GPUs and leave."
    return click.option("--list-devices", is_flag=True, is_eager=True, expose_value=False, callback=print_devices, help=text)


def placement_options(gpu_layers: str = "auto") -> Callable[[F], F]:
    """What runs on which GPU. gpu_layers: the default of -ngl."""
    names = ("-ngl", "--gpu-layers", "--n-gpu-layers", "n_gpu_layers")
    text = "Layers on GPUs, from the output down; auto: as many as fit."
    return apply([
        click.option(*names, callback=layer_count, metavar="N|auto|all", default=gpu_layers, show_default=True, help=text),
        click.option("-cmoe", "--cpu-moe", "cpu_moe", is_flag=True, help="Keep all experts on the CPU."),
        click.option("-ncmoe", "--n-cpu-moe", "n_cpu_moe", type=click.IntRange(0), default=0, help="Those of the first N layers only."),
        click.option("-dev", "--device", "devices", metavar="NAME,NAME|none", help="GPUs to use, in this order (all)."),
        click.option("-ts", "--tensor-split", callback=share_list, metavar="N,N", help="Share of each GPU (by free memory)."),
        list_devices_option(),
    ])  # fmt: skip


def show_placement(model: Model, verbose: bool) -> None:
    """What lies where, on stderr. With -v and a GPU the runtime has said it already."""
    if (model.n_gpu_layers > 0) != verbose:
        log(model.placement)
