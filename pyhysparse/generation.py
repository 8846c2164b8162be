"""One generation: the iterator that LLM.generate() returns, and what it knows when it is done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["FinishReason", "Generation", "GenerationState", "Timings"]

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass
class Timings:
    """Seconds and tokens of one generation. prompt_cached: tokens of the prompt that the conversation held already."""

    prompt_tokens: int = 0  # evaluated
    prompt_cached: int = 0
    prompt_seconds: float = 0.0
    generated_tokens: int = 0
    generation_seconds: float = 0.0  # sampling and evaluation, without the time that the caller takes between pieces

    @property
    def prompt_per_second(self) -> float:
        """Tokens of the prompt evaluated a second; 0 when nothing was."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds > 0 else 0.0

    @property
    def generation_per_second(self) -> float:
        """Tokens generated a second; 0 when none was."""
        return self.generated_tokens / self.generation_seconds if self.generation_seconds > 0 else 0.0


@dataclass
class GenerationState:
    """What a running generation has come to."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    timings: Timings = field(default_factory=Timings)


class Generation(Iterator[str]):
    """Text pieces, made while they are asked for. Leaving the loop (or close()) stops it; nothing runs in between.

    tokens: ids made so far; text: the pieces so far; finish_reason: None while it runs, then "stop" (the model ended, or a stop string),
    "length" (max_tokens, or the context is full) or "cancelled" (LLM.cancel()); timings.
    """

    def __init__(self, state: GenerationState, pieces: Iterator[str]) -> None:
        self._state, self._pieces = state, pieces

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def read(self) -> str:
        """Run to the end; the whole text."""
        for _ in self:
            pass
        return self._state.text

    def close(self) -> None:
        """Stop it and let others use the conversation."""
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()

    @property
    def tokens(self) -> list[int]:
        return self._state.tokens

    @property
    def text(self) -> str:
        return self._state.text

    @property
    def finish_reason(self) -> FinishReason | None:
        return self._state.finish_reason

    @property
    def timings(self) -> Timings:
        return self._state.timings
