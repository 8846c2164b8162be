"""GGUF files on the Hugging Face hub: `user/repo[:quant]`, through huggingface_hub and its cache (shared with llama.cpp's)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pyhysparse.errors import ArgumentError, DownloadError

__all__ = ["fetch_gguf", "parse_spec", "select_gguf"]

DEFAULT_QUANTS = ("Q4_K_M", "Q8_0")  # llama.cpp's order; then the first file
SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
SIDECARS = ("mmproj", "mtp-")  # files beside a model that are none


def parse_spec(spec: str) -> tuple[str, str | None]:
    """"user/repo:Q4_K_M" -> ("user/repo", "Q4_K_M"); the quant may be missing."""
    repo, _, quant = spec.partition(":")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo):
        raise ArgumentError(f"hub repository {spec!r}; expected user/repo or user/repo:quant")
    return repo, quant or None


def select_gguf(files: Sequence[str], quant: str | None = None) -> list[str]:
    """The files to fetch, all shards of one model: of `quant` (any case), else of Q4_K_M, then Q8_0, else the first GGUF.

    Raises DownloadError, which lists what there is.
    """
    models = sorted(f for f in files if f.lower().endswith(".gguf") and not Path(f).name.lower().startswith(SIDECARS))
    if not models:
        raise DownloadError("the repository has no GGUF file")
    for wanted in (quant,) if quant else DEFAULT_QUANTS:
        pattern = re.compile(rf"(?<![a-z0-9]){re.escape(wanted)}(?![a-z0-9_])", re.IGNORECASE)
        found = [f for f in models if pattern.search(f)]
        if found:
            return shards_of(found[0], models)
    if quant:
        raise DownloadError(f"the repository has no GGUF file of quant {quant!r}; it has {', '.join(models[:20])}")
    return shards_of(models[0], models)


def shards_of(first: str, models: Sequence[str]) -> list[str]:
    match = SHARD.search(first)
    if match is None:
        return [first]
    stem, count = first[: match.start()], int(match[2])
    names = [f"{stem}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1)]
    missing = [name for name in names if name not in models]
    if missing:
        raise DownloadError(f"the repository lacks {missing[0]}, one of {count} shards")
    return names


def fetch_gguf(spec: str, *, token: str | None = None, offline: bool = False, revision: str | None = None) -> Path:
    """Download (or find in the hub's cache) the GGUF that `user/repo[:quant]` names; the path of its first shard.

    offline: cache only; without it, the cache also serves when the hub cannot be reached. Raises ArgumentError, DownloadError.
    """
    repo, quant = parse_spec(spec)
    if not offline:
        try:
            return download(repo, quant, token, revision)
        except DownloadError:
            raise
        except Exception as error:  # its network, permission and not-found errors share no base class
            if not is_connection_error(error):
                raise DownloadError(f"{repo}: {first_line(error)}") from None
            why = first_line(error)
    else:
        why = "offline was asked for"
    return from_cache(repo, quant, revision, why)


def download(repo: str, quant: str | None, token: str | None, revision: str | None) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    # model_info() and not list_repo_files(), which retries for half a minute without a network
    files = [sibling.rfilename for sibling in HfApi(token=token).model_info(repo, revision=revision).siblings or []]
    try:
        names = select_gguf(files, quant)
    except DownloadError as error:
        raise DownloadError(f"{repo}: {error}") from None
    paths = [Path(hf_hub_download(repo, name, revision=revision, token=token)) for name in names]
    return paths[0]


def from_cache(repo: str, quant: str | None, revision: str | None, why: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=["*.gguf"]))
    except Exception:
        raise DownloadError(f"{repo} is not in the hub's cache, and it cannot be fetched: {why}") from None
    files = [str(path.relative_to(folder).as_posix()) for path in folder.rglob("*.gguf")]
    try:
        return folder / select_gguf(files, quant)[0]
    except DownloadError as error:
        raise DownloadError(f"{repo}, in the hub's cache ({folder}): {error}; it cannot be fetched: {why}") from None


def is_connection_error(error: BaseException) -> bool:
    """Whether the hub could not be reached at all (whichever HTTP library huggingface_hub uses)."""
    words = ("ConnectError", "ConnectionError", "Timeout", "OfflineMode", "TransportError")
    seen: BaseException | None = error
    while seen is not None:
        if any(word in base.__name__ for base in type(seen).__mro__ for word in words):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
