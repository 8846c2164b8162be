"""Hugging Face checkpoints to GGUF: `convert(source, out)` and what it raises and returns."""
from .errors import ConvertError
from .hf_to_gguf import Report, TensorRow, convert, parse_size
from .hub import resolve_source

__all__ = ["ConvertError", "Report", "TensorRow", "convert", "parse_size", "resolve_source"]
