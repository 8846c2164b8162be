"""Four kinds of text out of package registries, for perplexity: code, prose, manuals, bible.

    python bench/texts.py FOLDER

code: modules of CPython's standard library (the running interpreter's). The others are Debian packages, fetched with `apt-get download`
and unpacked with `dpkg -x` into the folder (nothing is installed): prose: Jane Austen's "Persuasion" and "Emma" (r-cran-janeaustenr);
manuals: man pages of section 7 (manpages), formatted with groff; bible: the King James Version (bible-kjv, bible-kjv-text). Each becomes
FOLDER/<kind>.txt, cut to MAX_CHARS; a file that is there already is kept, so that other texts can be put in its place.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys
import sysconfig
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["KINDS", "Text", "load_texts"]

MAX_CHARS = 200_000
CODE_MODULES = ("argparse", "configparser", "difflib", "enum", "inspect", "heapq", "ipaddress", "tarfile")
MAN_PAGES = (
    "epoll", "capabilities", "cpuset", "inotify", "credentials", "mount_namespaces", "namespaces", "path_resolution", "pipe", "pthreads",
    "sched", "signal", "socket", "tcp", "time", "unix", "user_namespaces", "vdso", "xattr",
)  # fmt: skip


@dataclass(frozen=True)
class Text:
    """One kind of text, and where it is from."""

    kind: str
    text: str
    source: str
    sha256: str  # of the UTF-8 text


def unpack(folder: Path, package: str) -> tuple[Path, str]:
    """The root of an unpacked Debian package, and its file's name (with the version)."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (found := sorted(folder.glob(f"{package}_*.deb"))):
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        found = sorted(folder.glob(f"{package}_*.deb"))
    root = folder / package
    if not root.exists():
        subprocess.run(["dpkg", "-x", str(found[-1]), str(root)], check=True)
    return root, found[-1].name


def code(folder: Path) -> tuple[str, str]:
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    version = ".".join(map(str, sys.version_info[:3]))
    return "\n".join((stdlib / f"{name}.py").read_text() for name in CODE_MODULES), f"CPython {version}: {', '.join(CODE_MODULES)}"


def prose(folder: Path) -> tuple[str, str]:
    """The package holds R data: a zlib stream a novel, each an R serialisation of one character vector, a string a line of the book."""
    root, deb = unpack(folder, "r-cran-janeaustenr")
    data = (root / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    novels: dict[str, str] = {}
    while data:
        stream = zlib.decompressobj()  # after four bytes of length
        book = character_vector(stream.decompress(data[4:]))
        data = stream.unused_data
        novels[next(line for line in book if line).title()] = "\n".join(book)
    return novels["Persuasion"] + "\n" + novels["Emma"], f"{deb}: Persuasion, Emma"


def character_vector(data: bytes) -> list[str]:
    """The strings of an R object in XDR format, version 3, that is one STRSXP (type 16) without missing values."""
    at = 14 + 4 + int.from_bytes(data[14:18], "big")  # "X\n", three version numbers, the encoding's name
    kind, n = data[at + 3], int.from_bytes(data[at + 4 : at + 8], "big")
    if kind != 16:
        raise ValueError(f"R type {kind}; expected 16, a character vector")
    at += 8
    out = []
    for _ in range(n):
        size = int.from_bytes(data[at + 4 : at + 8], "big")
        out.append(data[at + 8 : at + 8 + size].decode())
        at += 8 + size
    return out


def manuals(folder: Path) -> tuple[str, str]:
    root, deb = unpack(folder, "manpages")
    pages = []
    for name in MAN_PAGES:
        roff = gzip.decompress((root / f"usr/share/man/man7/{name}.7.gz").read_bytes())
        command = ["groff", "-mandoc", "-Tascii", "-P-cbou", "-rHY=0"]
        pages.append(subprocess.run(command, input=roff, capture_output=True, check=True).stdout.decode("ascii", "replace"))
    return "\n".join(pages), f"{deb}, section 7: {', '.join(MAN_PAGES)}"


def bible(folder: Path) -> tuple[str, str]:
    program, deb = unpack(folder, "bible-kjv")
    data, data_deb = unpack(folder, "bible-kjv-text")
    command = [str(program / "usr/bin/bible"), "-p", str(data / "usr/lib"), "-f", "Gen1:1-Num1:1"]
    verses = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    return verses, f"{deb}, {data_deb}: bible -f, from Genesis 1"


MAKERS: dict[str, Callable[[Path], tuple[str, str]]] = {"code": code, "prose": prose, "manuals": manuals, "bible": bible}
KINDS = tuple(MAKERS)


def load_texts(folder: Path) -> list[Text]:
    """All four, made where they are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for kind, maker in MAKERS.items():
        path, source_path = folder / f"{kind}.txt", folder / f"{kind}.source"
        if not path.exists():
            text, source = maker(folder / "debian")
            source_path.write_text(source)
            temporary = path.with_suffix(".tmp")
            temporary.write_text(text[:MAX_CHARS], encoding="utf-8")
            os.replace(temporary, path)
        text = path.read_text(encoding="utf-8")
        source = source_path.read_text() if source_path.exists() else "given by --texts"
        out.append(Text(kind, text, source, hashlib.sha256(text.encode()).hexdigest()))
    return out


if __name__ == "__main__":
    for item in load_texts(Path(sys.argv[1])):
        print(f"{item.kind:8} {len(item.text):7} characters, sha256 {item.sha256}\n         {item.source}")
