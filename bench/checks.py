"""A target beside what was reached, for the tables."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Check"]


@dataclass(frozen=True)
class Check:
    """A target beside the value reached. kind: "at least" or "at most"."""

    what: str
    value: float
    kind: str
    target: float
    unit: str  # "x", "%" or "s"

    @property
    def met(self) -> bool:
        return self.value >= self.target if self.kind == "at least" else self.value <= self.target

    def __str__(self) -> str:
        digits = 1 if self.unit == "%" else 2
        sign = "≥" if self.kind == "at least" else "≤"
        return f"{self.what} {self.value:.{digits}f}{self.unit} {sign} {self.target:g}{self.unit}: {'met' if self.met else '**not met**'}"
