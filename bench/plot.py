"""The picture: tokens a second and bytes of the caches over the length of the context. Needs matplotlib (the extra "bench")."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ladder import PEER
from vs_report import Row

__all__ = ["plot"]

# engine: (label, colour, marker); colours that the usual kinds of colour blindness keep apart
STYLES = {
    "llama.cpp": ("llama.cpp, full attention", "#555555", "s"),
    "full": ("pyhysparse, full attention", "#0072b2", "o"),
    "oracle": ("pyhysparse, oracle mode", "#e69f00", "^"),
    "hysparse": ("pyhysparse, HySparse", "#009e73", "D"),
}
PANELS: tuple[tuple[str, Callable[[Row], float]], ...] = (
    ("prompt tokens/s", lambda r: r.prompt),
    ("generated tokens/s", lambda r: r.tg),
    ("KV cache, MiB", lambda r: r.cache_bytes / 2**20),
)


def plot(rows: list[Row], titles: dict[str, str], path: Path) -> None:
    """An SVG with a line of three panels a comparison (titles: name to heading). Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    pyplot.rcParams.update({"svg.hashsalt": "hysparse", "svg.fonttype": "none", "font.size": 9})
    pyplot.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    names = [name for name in titles if any(r.comparison == name for r in rows)]
    figure, axes = pyplot.subplots(len(names), 3, figsize=(11, 3.1 * len(names) + 0.5), squeeze=False)
    shown: dict[str, object] = {}
    for line, name in zip(axes, names, strict=True):
        mine = [r for r in rows if r.comparison == name]
        depths = sorted({r.depth for r in mine})
        for axis, (label, value) in zip(line, PANELS, strict=True):
            for engine, (text, colour, marker) in STYLES.items():
                points = sorted((r.depth, value(r)) for r in mine if r.engine == engine)
                size = 7 if engine == PEER else 4.5  # drawn first: to be seen below a line that covers it
                if points:
                    (shown[text],) = axis.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=size, linewidth=1.6)
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_locator(FixedLocator(depths))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
            axis.set_ylim(bottom=0)
            axis.set_ylabel(label)
            axis.set_xlabel("context, tokens")
            axis.grid(alpha=0.25, linewidth=0.6)
        line[0].set_title(titles[name], loc="left", fontsize=9)
    figure.legend(list(shown.values()), list(shown), loc="upper center", ncols=len(shown), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.32 / figure.get_figheight()))
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)
