"""Chat messages -> prompt text, through the model's own template (`tokenizer.chat_template`) in a bounded sandbox."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyhysparse.errors import ArgumentError, TemplateError
from pyhysparse.sandbox import ChatEnvironment, render

__all__ = ["CHATML", "ChatTemplate", "Message", "checked_messages"]

Message = Mapping[str, Any]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ROLES = "system, user, assistant, tool (or another that the model's template knows)"


class ChatTemplate:
    """A model's chat template.

    source: Jinja text, or "chatml" for the common one. bos_text, eos_text: what templates see as bos_token and eos_token.
    """

    def __init__(self, source: str | None, bos_text: str = "", eos_text: str = "") -> None:
        self.source = CHATML if source == "chatml" else source
        self.bos_text, self.eos_text = bos_text, eos_text
        self._environment = ChatEnvironment()

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any) -> str:
        """The prompt text of a conversation: messages of {"role": str, "content": str | list of text parts}.

        add_generation_prompt: end with the opening of the assistant's turn. variables: what else the template reads (tools,
        enable_thinking ...). Raises ArgumentError for malformed messages and TemplateError for whatever goes wrong in the template.
        """
        if self.source is None:
            raise TemplateError("the model has no chat template (GGUF key tokenizer.chat_template); give one, for example 'chatml'")
        values: dict[str, Any] = {"bos_token": self.bos_text, "eos_token": self.eos_text, "tools": None, "documents": None, **variables}
        values["messages"] = checked_messages(messages)
        values["add_generation_prompt"] = add_generation_prompt
        return render(self._environment, self.source, values)


def checked_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Copies of the messages, with text parts joined into one string."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ArgumentError(f"messages must be a list of {{'role', 'content'}} dicts, found {type(messages).__name__}")
    out: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ArgumentError(f"messages[{i}] must be a dict, found {type(message).__name__}")
        role = message.get("role")
        if not isinstance(role, str):
            raise ArgumentError(f"messages[{i}]['role'] is {role!r}; expected one of {ROLES}")
        out.append({**message, "content": checked_content(message.get("content"), i)})
    return out


def checked_content(content: Any, i: int) -> str:
    if content is None:  # an assistant message that only calls tools
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and not isinstance(content, bytes):
        texts: list[str] = []
        for part in content:
            text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
            if not isinstance(text, str):
                raise ArgumentError(f"messages[{i}]['content'] has the part {part!r}; expected {{'type': 'text', 'text': str}}")
            texts.append(text)
        return "".join(texts)
    raise ArgumentError(f"messages[{i}]['content'] is a {type(content).__name__}; expected a string or a list of text parts")
