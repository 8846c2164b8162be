"""Stop strings in a text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence

from pyhysparse.errors import ArgumentError

__all__ = ["StopMatcher", "stop_list"]


def stop_list(stop: str | Sequence[str] | None) -> list[str]:
    """The stop strings as a list; none may be empty."""
    stops = [] if stop is None else [stop] if isinstance(stop, str) else list(stop)
    for text in stops:
        if not isinstance(text, str) or not text:
            raise ArgumentError(f"stop holds {text!r}; expected strings that are not empty")
    return stops


class StopMatcher:
    """Passes text on, except for what may be the beginning of a stop string; ends at the first stop string, which is left out."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = list(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The part of the text so far that can be shown."""
        if not self._stops:
            return text
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """What is still held back at the end of the text."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """The longest end of the held text that begins the stop string."""
        for n in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:n]):
                return n
        return 0
