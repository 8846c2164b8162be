"""Where a checkpoint comes from: a folder, or a repository of the Hugging Face hub through huggingface_hub and its cache."""
from __future__ import annotations

import re
from pathlib import Path

from .errors import ConvertError

PATTERNS = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "README.md"]
IGNORED = ["consolidated*", "original/*", "*/*.safetensors"]
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+$")


def resolve_source(repo_or_dir: str | Path, revision: str | None = None, token: str | None = None,
                   cache_dir: str | Path | None = None) -> Path:
    """The checkpoint's folder: `repo_or_dir` itself, or the snapshot of the hub repository `user/name` (downloaded if not yet cached).

    Raises ConvertError when it is neither, or the download fails.
    """
    path = Path(repo_or_dir).expanduser()
    if path.is_dir():
        return path
    name = str(repo_or_dir)
    if path.exists() or not _REPO.match(name):
        found = "a file" if path.exists() else "no such folder"
        raise ConvertError(f"{name}: {found}; expected a checkpoint folder or a repository user/name")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as e:
        raise ConvertError(f"{name}: no such folder, and huggingface_hub is not installed to download it") from e
    try:
        return Path(snapshot_download(name, revision=revision, token=token, cache_dir=cache_dir, allow_patterns=PATTERNS,
                                      ignore_patterns=IGNORED))
    except Exception as e:  # its many network and permission errors share no base class
        raise ConvertError(f"{name}: no such folder, and its download failed: {e}") from e
