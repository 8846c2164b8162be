"""What a measurement ran on, for the head of a table: processor level, cores, versions. No host names."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

from pyhysparse import runtime_version

__all__ = ["facts", "facts_line"]


def facts() -> dict[str, str]:
    """Processor, cores, system, Python and library versions; runtime: ours with ggml's features and the kernel level chosen."""
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next((line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    out = {"cpu": model, "cores": str(cores), "system": f"{platform.system()} {platform.machine()}", "python": platform.python_version()}
    out["runtime"] = runtime_version()
    for package in ("llama-cpp-python", "numpy"):
        try:
            out[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            out[package] = "not installed"
    return out


def facts_line(found: dict[str, str] | None = None) -> str:
    """The facts in a line: of this machine, or those of an earlier run."""
    f = found or facts()
    versions = f"pyhysparse {f['runtime']}; llama-cpp-python {f['llama-cpp-python']}; Python {f['python']}"
    return f"{f['cpu']}, {f['cores']} cores, {f['system']}; {versions}"
