"""Checked access to a checkpoint's config.json."""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .errors import ConvertError, mismatch


class Config:
    """config.json with typed getters. Each getter takes the field's name and its aliases; null counts as absent.

    Errors name the field, the value found and the value expected. Without a default, an absent field is an error.
    """

    _REQUIRED: Any = object()

    def __init__(self, data: Mapping[str, Any], where: str = "config.json") -> None:
        self.data = dict(data)
        self.where = where

    def has(self, *names: str) -> bool:
        """Whether one of the names is present with a value other than null."""
        return any(self.data.get(name) is not None for name in names)

    def place(self, name: str) -> str:
        """The field as messages name it."""
        return f"{self.where}: {name}"

    def raw(self, *names: str, default: Any = _REQUIRED) -> tuple[str, Any]:
        """(name, value) of the first name that is present; the default goes with the first name."""
        for name in names:
            value = self.data.get(name)
            if value is not None:
                return name, value
        if default is Config._REQUIRED:
            others = f" (or {', '.join(names[1:])})" if len(names) > 1 else ""
            raise ConvertError(f"{self.place(names[0])}: missing{others}")
        return names[0], default

    def integer(self, *names: str, default: Any = _REQUIRED, low: int = 1, high: int = 2**31 - 1) -> int:
        """An integer in [low, high]; a default is returned as it is."""
        name, value = self.raw(*names, default=default)
        if value is default:
            return int(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) or not low <= value <= high:
            raise mismatch(self.place(name), repr(value), f"an integer of {low} to {high}")
        return int(value)

    def number(self, *names: str, default: Any = _REQUIRED, low: float = 0.0) -> float:
        """A finite number above `low`; a default is returned as it is."""
        name, value = self.raw(*names, default=default)
        if value is default:
            return float(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= low:
            raise mismatch(self.place(name), repr(value), f"a number above {low:g}")
        return float(value)

    def flag(self, *names: str, default: Any = _REQUIRED) -> bool:
        """true or false (0 and 1 count too)."""
        name, value = self.raw(*names, default=default)
        if not isinstance(value, bool) and value not in (0, 1):
            raise mismatch(self.place(name), repr(value), "true or false")
        return bool(value)

    def optional_flag(self, *names: str) -> bool | None:
        """true, false, or None when the config is silent."""
        return self.flag(*names) if self.has(*names) else None

    def choice(self, *names: str, options: tuple[str, ...], default: Any = _REQUIRED) -> str:
        """One of `options`."""
        name, value = self.raw(*names, default=default)
        if value not in options:
            raise mismatch(self.place(name), repr(value), "one of " + ", ".join(options))
        return str(value)

    def items(self, *names: str, length: int, default: Any = _REQUIRED) -> list[Any]:
        """A list with one entry a layer."""
        name, value = self.raw(*names, default=default)
        if not isinstance(value, list):
            raise mismatch(self.place(name), type(value).__name__, f"a list of {length} entries")
        if len(value) != length:
            raise mismatch(self.place(name), f"{len(value)} entries", f"{length} (num_hidden_layers)")
        return value

    def forbid(self, name: str, allowed: tuple[Any, ...], why: str) -> None:
        """Refuse a field that would change the mathematics: its value must be absent, null or one of `allowed`."""
        value = self.data.get(name)
        if value is not None and value not in allowed:
            shown = " or ".join(repr(v) for v in allowed) or "nothing"
            raise mismatch(self.place(name), repr(value), f"{shown} ({why})")
