"""Numbers hidden in filler text, asked for at its end: does a mode of attention still retrieve? Perplexity alone does not tell (SPEC 5)."""

from __future__ import annotations

from typing import TypedDict

from pyhysparse import LLM

__all__ = ["Found", "needles_found"]

NEEDLES = (("harbour", "7341"), ("library", "2968"), ("station", "5107"), ("garden", "8623"), ("castle", "4095"))


class Found(TypedDict):
    asked: int
    found: int
    replies: list[str]


def needles_found(llm: LLM, filler: str, n_tokens: int) -> Found:
    """Hide each number in n_tokens of filler, at a depth of its own (10 % to 90 %); complete "The secret number of the ... is" greedily."""
    tokens = llm.tokenize(filler, add_bos=False)[:n_tokens]
    replies: list[str] = []
    found = 0
    for i, (place, number) in enumerate(NEEDLES):
        at = int(len(tokens) * (0.1 + 0.8 * i / (len(NEEDLES) - 1)))
        hidden = llm.tokenize(f"\n\nThe secret number of the {place} is {number}. Remember it.\n\n", add_bos=False)
        question = f"\n\nQuestion: What is the secret number of the {place}?\nAnswer: The secret number of the {place} is"
        llm.reset()
        prompt = [*tokens[:at], *hidden, *tokens[at:], *llm.tokenize(question, add_bos=False)]
        reply = llm.generate(prompt, max_tokens=6, temperature=0).read()
        replies.append(reply)
        found += number in reply
    return {"asked": len(NEEDLES), "found": found, "replies": replies}
