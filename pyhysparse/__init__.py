"""pyhysparse: native inference of HySparse sparse-attention language models, and of Llama, Qwen and MiMo, on ggml.

    from pyhysparse import LLM
    for piece in LLM("demo").generate("Once upon a time", max_tokens=64):
        print(piece, end="")

The names below are imported when they are first used, so that `import pyhysparse` (and `hysparse --help`) stay quick.
"""

from __future__ import annotations

import importlib
from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyhysparse.chat import ChatTemplate
    from pyhysparse.gguf import GGUFFile
    from pyhysparse.llm import LLM, Generation, Timings
    from pyhysparse.logs import logs_to_logging, logs_to_stderr
    from pyhysparse.model import LayerInfo, MemoryUse, Model, ModelInfo
    from pyhysparse.placement import Device, DeviceMemory, devices
    from pyhysparse.quantizing import quantize
    from pyhysparse.sampling import Sampler, SamplingParams
    from pyhysparse.session import Session, SessionParams
    from pyhysparse.tokenizer import StreamDecoder, Tokenizer

# In a checkout's root `import pyhysparse` finds this folder, which holds no compiled module: then the installed package is searched too.
__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "ChatTemplate",
    "Device",
    "DeviceMemory",
    "GGUFFile",
    "Generation",
    "LayerInfo",
    "MemoryUse",
    "Model",
    "ModelInfo",
    "Sampler",
    "SamplingParams",
    "Session",
    "SessionParams",
    "StreamDecoder",
    "Timings",
    "Tokenizer",
    "devices",
    "logs_to_logging",
    "logs_to_stderr",
    "quantize",
    "runtime_version",
]

HOMES = {
    "LLM": "llm",
    "Generation": "llm",
    "Timings": "llm",
    "ChatTemplate": "chat",
    "GGUFFile": "gguf",
    "logs_to_logging": "logs",
    "logs_to_stderr": "logs",
    "LayerInfo": "model",
    "MemoryUse": "model",
    "Model": "model",
    "ModelInfo": "model",
    "Device": "placement",
    "DeviceMemory": "placement",
    "devices": "placement",
    "Sampler": "sampling",
    "SamplingParams": "sampling",
    "Session": "session",
    "SessionParams": "session",
    "StreamDecoder": "tokenizer",
    "Tokenizer": "tokenizer",
    "quantize": "quantizing",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'pyhysparse' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pyhysparse.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "errors"])


def runtime_version() -> str:
    """Version of the C runtime, of ggml inside it, and the CPU kernels chosen on this machine."""
    from pyhysparse._ffi import lib, text

    return text(lib.hs_version())
