"""A Jinja environment for templates that nobody has read: jinja2's immutable sandbox, and bounds on time, memory and output.

A chat template comes out of a model file, so it is untrusted code (CVE-2024-34359 was an unsandboxed one). jinja2's sandbox stops
attribute tricks; it does not stop `{% for %}` over ten nested ranges or `"x" * 10**9`. So each loop step and call is counted against a
budget and a deadline, values are weighed where they are made (size of texts, number of nested elements), and numbers that set a size
(repeat counts, field widths) are bounded. What exceeds a bound is a TemplateError.
"""

from __future__ import annotations

import datetime
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from pyhysparse.errors import TemplateError

__all__ = ["MAX_CHARACTERS", "MAX_SECONDS", "MAX_STEPS", "ChatEnvironment", "render"]

MAX_STEPS = 500_000  # loop steps and calls of one rendering
MAX_SECONDS = 10.0  # of one rendering
MAX_CHARACTERS = 8 << 20  # of any text or structure made on the way, and of the result
MAX_ELEMENTS = 500_000  # of any structure, counted through its nesting
MAX_COUNT = 100_000  # repeat counts, widths, range lengths
MAX_SOURCE = 1 << 20  # characters of a template
REMOVED_FILTERS = ("center", "filesizeformat", "pprint", "random", "slice", "batch", "wordwrap", "urlize", "xmlattr", "truncate")
SIZING_METHODS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})
INTERNAL = (jinja2.Environment, nodes.EvalContext, jinja2.runtime.Context)


class Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`, with which transformers marks the assistant's tokens: here just its contents."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def check_size(size: int, what: str) -> None:
    if size > MAX_CHARACTERS:
        raise TemplateError(f"chat template: {what} would have {size} characters; at most {MAX_CHARACTERS} are allowed")


def check_count(value: Any, what: str) -> None:
    if isinstance(value, int) and abs(value) > MAX_COUNT:
        raise TemplateError(f"chat template: {what} is {value}; at most {MAX_COUNT} is allowed")


def check_format(source: str, values: Iterable[Any], size: int) -> None:
    """A format string (of % or of str.format) whose arguments have `size` characters together."""
    for digits in re.findall(r"\d+", source):
        if len(digits) > 4:
            raise TemplateError(f"chat template: format width {digits[:20]} is larger than 9999")
    if re.search(r"\{[^{}]*\{", source):
        raise TemplateError("chat template: a format field inside a format field")
    if "*" in source:
        for value in values:
            check_count(value, "a format width")
    check_size(len(source) + (source.count("%") + source.count("{")) * (size + 10), "a formatted text")


def check_replace(text: str, old: str, new: str) -> None:
    count = text.count(old) if old else len(text) + 1
    check_size(len(text) + count * len(new), "the result of replace")


def raise_exception(message: str) -> Any:
    """For templates that refuse a conversation."""
    raise TemplateError(f"chat template: {message}")


def strftime_now(format: str) -> str:
    check_format(format, (), 40)
    return datetime.datetime.now().strftime(format)


def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    """transformers' `tojson`: no HTML escapes."""
    if isinstance(indent, int) and indent > 32:
        raise TemplateError(f"chat template: an indent of {indent} is larger than 32")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def bounded_concat(parts: Iterable[str]) -> str:
    """How jinja2 joins the output of blocks and macros."""
    texts = list(parts)
    check_size(sum(map(len, texts)), "a text")
    return "".join(texts)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Renders one template at a time (a lock), each under a fresh budget."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    concat = staticmethod(bounded_concat)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[Generation, loopcontrols],
            finalize=self.weighed,
            autoescape=False,
            cache_size=0,
        )
        self.lock = threading.RLock()
        self.steps, self.deadline = 0, 0.0
        self.restart()
        self.globals = {
            "range": bounded_range,
            "dict": dict,
            "namespace": Namespace,
            "raise_exception": raise_exception,
            "strftime_now": strftime_now,
        }
        self.filters["tojson"] = to_json
        self.filters = {name: self.guarded(name, function) for name, function in self.filters.items() if name not in REMOVED_FILTERS}
        self.filters["hs_steps"] = self.counted
        self.filters["hs_weighed"] = self.weighed
        self.filters["hs_concat"] = self.concatenated

    def restart(self) -> None:
        """A full budget for the next rendering."""
        self.steps, self.deadline = 0, time.monotonic() + MAX_SECONDS

    def spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise TemplateError(f"chat template: more than {MAX_STEPS} loop steps and calls")
        if time.monotonic() > self.deadline:
            raise TemplateError(f"chat template: rendering takes more than {MAX_SECONDS:g} seconds")

    def weigh(self, value: Any) -> int:
        """Characters of a value, counted through its nesting; too many elements or characters are an error. Costs a little budget."""
        if isinstance(value, str):
            check_size(len(value), "a text")
            self.spend(len(value) >> 14)
            return len(value)
        if not isinstance(value, (list, tuple, dict, range, set, Namespace)):
            return 20
        elements = characters = 0
        stack = [value]
        while stack:
            item = stack.pop()
            elements += 1
            if isinstance(item, str):
                characters += len(item) + 2
            elif isinstance(item, range):
                elements += len(item)
            else:
                characters += 10
                if isinstance(item, dict):
                    stack.extend(item.keys())
                    stack.extend(item.values())
                elif isinstance(item, (list, tuple, set)):
                    stack.extend(item)
                elif isinstance(item, Namespace):
                    stack.append(item._Namespace__attrs)
            if elements + len(stack) > MAX_ELEMENTS:
                raise TemplateError(f"chat template: a list or dict of more than {MAX_ELEMENTS} elements")
        check_size(characters, "a list or dict")
        self.spend((elements >> 5) + (characters >> 14))
        return characters

    def weighed(self, value: Any) -> Any:
        """The value itself, after weighing: wraps list, tuple and dict displays, and whatever is written out."""
        self.weigh(value)
        return value

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """What every `for` iterates over: the same items, each counted."""
        if isinstance(items, jinja2.Undefined):
            return iter(items)
        return self.count_each(items)

    def count_each(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.spend(1)
            yield item

    def concatenated(self, parts: list[Any]) -> str:
        """`a ~ b`."""
        check_size(sum(self.weigh(part) for part in parts), "the result of ~")
        return "".join(map(str, parts))

    def guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter behind a check of its arguments and its result. wraps() keeps its pass_environment marks."""

        @wraps(function)
        def filtered(*args: Any, **kwargs: Any) -> Any:
            self.spend(1)
            values = [value for value in args if not isinstance(value, INTERNAL)]
            size = sum(map(self.weigh, values)) + sum(map(self.weigh, kwargs.values()))
            text = values[0] if values else ""
            if name == "replace" and len(values) >= 3:
                check_replace(str(text), str(values[1]), str(values[2]))
            elif name == "format":
                check_format(str(text), [*values[1:], *kwargs.values()], size)
            elif name == "join" and len(values) > 1 and isinstance(text, (list, tuple, str)):
                check_size(size + len(str(values[1])) * len(text), "the result of join")
            elif name == "indent":
                width = values[1] if len(values) > 1 else kwargs.get("width", 4)
                check_count(width, "an indent")
                check_size(size + (str(text).count("\n") + 1) * (width if isinstance(width, int) else len(str(width))), "an indented text")
            return self.weighed(function(*args, **kwargs))

        return filtered

    def call(self, context: jinja2.runtime.Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Every call in a template comes through here."""
        self.spend(1)
        size = sum(map(self.weigh, args)) + sum(map(self.weigh, kwargs.values()))
        method = getattr(obj, "__wrapped__", obj)  # the sandbox wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str):
            if name in SIZING_METHODS:
                for value in (*args, *kwargs.values()):
                    check_count(value, f"an argument of {name}()")
            elif name == "replace" and len(args) >= 2:
                check_replace(owner, str(args[0]), str(args[1]))
            elif name in ("format", "format_map"):
                check_format(owner, (), size)
            elif name == "join" and args:
                args = (list(self.count_each(args[0])),)
                check_size(self.weigh(args[0]) + len(owner) * len(args[0]), "the result of join()")
        return self.weighed(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            check_format(left, right if isinstance(right, tuple) else (right,), self.weigh(right))
        elif operator == "*":
            for sequence, count in ((left, right), (right, left)):
                if isinstance(sequence, (str, list, tuple)) and isinstance(count, int) and count > 0:
                    check_size(max(self.weigh(sequence), 1) * count, "a repeated text or list")
            check_bits(left, right)
        elif operator == "**":
            check_count(left, "a base")
            if isinstance(right, int) and abs(right) > 64:
                raise TemplateError(f"chat template: exponent {right} is larger than 64")
        elif isinstance(left, str) and isinstance(right, str):
            check_size(len(left) + len(right), "the sum of two texts")
        return self.weighed(super().call_binop(context, operator, left, right))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Parse, then route loops, displays and `~` through the bounded helpers."""
        tree: nodes.Template = Rewrite().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree


class Rewrite(NodeTransformer):
    """Puts the bounded helpers, which are filters, around the parts of a syntax tree that jinja2 has no hook for."""

    def wrap(self, node: nodes.Node, helper: str) -> nodes.Filter:
        return nodes.Filter(node, helper, [], [], None, None, lineno=node.lineno)

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = self.wrap(node.iter, "hs_steps")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return self.wrap(nodes.List(node.nodes, lineno=node.lineno), "hs_concat")

    def visit_List(self, node: nodes.List) -> nodes.Filter:
        self.generic_visit(node)
        return self.wrap(node, "hs_weighed")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Filter:
        self.generic_visit(node)
        return self.wrap(node, "hs_weighed")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return self.wrap(node, "hs_weighed") if node.ctx == "load" else node


def bounded_range(*args: int) -> range:
    values = range(*args)
    try:
        length = len(values)
    except OverflowError:
        length = MAX_COUNT + 1
    if length > MAX_COUNT:
        raise TemplateError(f"chat template: range{args} is longer than {MAX_COUNT}")
    return values


def check_bits(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > 4096:
        raise TemplateError("chat template: a product of more than 4096 bits")


def render(environment: ChatEnvironment, source: str, variables: Mapping[str, Any]) -> str:
    """Render a template. Every failure, the template's own ones too, is a TemplateError that names the line where it is known."""
    if len(source) > MAX_SOURCE:
        raise TemplateError(f"chat template: {len(source)} characters; at most {MAX_SOURCE} are allowed")
    with environment.lock:
        environment.restart()
        try:
            parts: list[str] = []
            size = 0
            for part in environment.from_string(source).generate(dict(variables)):
                size += len(part)
                check_size(size, "the rendered text")
                parts.append(part)
            return "".join(parts)
        except TemplateError:
            raise
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"chat template, line {error.lineno}: {error.message}") from None
        except jinja2.TemplateError as error:
            raise TemplateError(f"chat template: {error.message or type(error).__name__}") from None
        except RecursionError:
            raise TemplateError("chat template: recursion without an end") from None
        except MemoryError:
            raise TemplateError("chat template: out of memory") from None
        except Exception as error:  # ZeroDivisionError, TypeError, KeyError ... of the template's own expressions
            raise TemplateError(f"chat template: {type(error).__name__}: {error}") from None
