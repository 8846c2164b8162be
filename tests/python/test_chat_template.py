"""Chat templates: the same text as transformers renders, and an error, soon, for every template that is hostile or wrong."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pyhysparse.chat import ChatTemplate, checked_messages
from pyhysparse.errors import ArgumentError, TemplateError

CONVERSATION = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hi <|im_end|> {{ 1 }}"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello!"},
    {"role": "user", "content": "naïve 😀?"},
]
TOOLS = [{"type": "function", "function": {"name": "now", "description": "é", "parameters": {"type": "object", "properties": {}}}}]
TEMPLATES = {
    "smollm2": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are SmolLM"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama3 style": "{{- bos_token }}\n{%- if messages[0]['role'] == 'system' %}\n    {%- set system = messages[0]['content']|trim %}\n"
    "    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system = '' %}\n{%- endif %}\n{{- '<|start_header_id|>system"
    "<|end_header_id|>\n\n' + system + '<|eot_id|>' }}\n{%- for message in messages %}\n    {{- '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    "
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}\n{%- endif %}",
    "qwen3 style": "{%- if tools %}\n    {{- '<|im_start|>system\n' }}\n    {%- for tool in tools %}\n        {{- '\n' }}\n        {{- tool | tojson }}\n"
    "    {%- endfor %}\n{%- endif %}\n{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}\n"
    "{%- for message in messages[::-1] %}\n    {%- set index = (messages|length - 1) - loop.index0 %}\n    {%- if ns.multi_step_tool and "
    "message.role == 'user' and not(message.content.startswith('<tool_response>')) %}\n        {%- set ns.multi_step_tool = false %}\n        "
    "{%- set ns.last_query_index = index %}\n    {%- endif %}\n{%- endfor %}\n{%- for message in messages %}\n    {%- set content = message.content %}\n"
    "    {%- if '</think>' in content %}\n        {%- set content = content.split('</think>')[-1].lstrip('\n') %}\n    {%- endif %}\n"
    "    {%- if loop.last or (not loop.last and loop.index0 > ns.last_query_index) %}{{- '!' }}{% endif %}\n"
    "    {{- '<|im_start|>' ~ message.role ~ '\n' ~ content ~ '<|im_end|>' ~ '\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\n' }}\n    {%- if enable_thinking is defined and enable_thinking is false %}\n        {{- '<think>\n\n</think>\n\n' }}\n"
    "    {%- endif %}\n{%- endif %}",
    "macros and generation": "{% macro turn(m, mark='|') %}{{ mark ~ m.role ~ mark ~ m['content'] | upper }}{% endmacro %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% continue %}{% endif %}{% generation %}{{ turn(m) }}{% endgeneration %}{{ loop.index }}/{{ loop.length }}{% endfor %}",
    "filters": "{{ messages | map(attribute='role') | join(', ') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} "
    "{{ tools | tojson(indent=2) }} {{ {'a': [1, (2, 3)], 'b': none} | tojson }} {{ 'a\nb' | indent(4, first=true) }} {{ '%s-%03d' | format('x', 7) }} "
    "{{ '{}: {:>5}'.format('k', 'v') }} {{ 'abc' | replace('b', 'BB') }} {{ [3, 1, 2] | sort | join }} {{ 7 // 2 }} {{ 2 ** 10 }} {{ 'ab' * 3 }} "
    "{{ dict(a=1).items() | list }} {{ messages[0].content is string }} {{ [1, 2] + [3] }}",
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("extra", [{}, {"tools": TOOLS, "enable_thinking": False}], ids=["plain", "tools"])
def test_same_text_as_transformers(name: str, extra: dict[str, Any]) -> None:
    rendering = pytest.importorskip("transformers.utils.chat_template_utils")
    if name == "filters" and not extra:
        extra = {"tools": []}
    variables = {"bos_token": "<s>", "eos_token": "</s>", "tools": None, "documents": None, "add_generation_prompt": True, **extra}
    expected = rendering._compile_jinja_template(TEMPLATES[name]).render(messages=CONVERSATION, **variables)
    assert ChatTemplate(TEMPLATES[name], "<s>", "</s>").render(CONVERSATION, **extra) == expected


def test_chatml_and_parts() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert ChatTemplate("chatml").render(messages) == "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n"
    assert ChatTemplate("chatml").render(messages, add_generation_prompt=False) == "<|im_start|>user\nab<|im_end|>\n"


def test_no_template() -> None:
    with pytest.raises(TemplateError, match=r"tokenizer\.chat_template"):
        ChatTemplate(None).render(CONVERSATION)


@pytest.mark.parametrize("messages, words", [
    ("hi", "list"), ([3], r"messages\[0\]"), ([{"content": "x"}], "role"), ([{"role": "user", "content": 7}], "int"),
    ([{"role": "user", "content": [{"type": "image"}]}], "image"),
])  # fmt: skip
def test_malformed_messages(messages: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        checked_messages(messages)


DOUBLING = "{% set ns = namespace(x='aaaaaaaaaa') %}{% for i in range(1000) %}{% set ns.x = EXPR %}{% endfor %}"
HOSTILE: dict[str, tuple[str, str]] = {
    "endless nested loops": ("{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}", "steps"),
    "huge range": ("{% for a in range(10**18) %}x{% endfor %}", "range"),
    "recursive macro": ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "recursion"),
    "branching macro": ("{% macro f(n) %}{% if n < 60 %}{{ f(n + 1) }}{{ f(n + 1) }}{% endif %}{% endmacro %}{{ f(0) }}", "steps|seconds"),
    "recursive loop": ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "recursion"),
    "deep parentheses": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "recursion|nest"),
    "division by zero": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "modulo by zero": ("{{ 1 % 0 }}", "ZeroDivisionError"),
    "class attributes": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "attr filter": ("{{ (messages | attr('__class__')).x }}", "unsafe|undefined"),
    "globals of a function": ("{{ raise_exception.__globals__['os'] }}", "unsafe"),
    "format reaching attributes": ("{{ '{0.__class__.__mro__}'.format(messages) }}", "unsafe"),
    "changes a message list": ("{{ messages.append(1) }}", "unsafe"),
    "import": ("{% import 'os' as o %}", "chat template"),
    "include": ("{% include '/etc/passwd' %}", "chat template"),
    "repeated text": ("{{ 'x' * 10**9 }}", "1000000000"),
    "huge power": ("{{ 10**10**10 }}", "is larger|at most"),
    "huge exponent": ("{{ 2 ** 999999999 }}", "999999999"),
    "wide % format": ("{{ '%999999999d' % 1 }}", "999999999"),
    "wide str.format": ("{{ '{:>999999999}'.format(1) }}", "999999999"),
    "width from an argument": ("{{ '{:{}}'.format(1, 999999999) }}", "field"),
    "star width": ("{{ '%*d' % (999999999, 1) }}", "999999999"),
    "doubling with ~": (DOUBLING.replace("EXPR", "ns.x ~ ns.x"), "characters"),
    "doubling with +": (DOUBLING.replace("EXPR", "ns.x + ns.x"), "characters"),
    "doubling with format": (DOUBLING.replace("EXPR", "'{}{}'.format(ns.x, ns.x)"), "characters"),
    "doubling with %": (DOUBLING.replace("EXPR", "'%s%s' % (ns.x, ns.x)"), "characters"),
    "doubling with replace": (DOUBLING.replace("EXPR", "ns.x | replace('a', 'aa')"), "characters"),
    "doubling with .replace": (DOUBLING.replace("EXPR", "ns.x.replace('a', 'aa')"), "characters"),
    "doubling with join": (DOUBLING.replace("EXPR", "[ns.x, ns.x] | join"), "characters"),
    "doubling with a set block": (
        "{% set ns = namespace(x='aaaaaaaaaa') %}{% for i in range(1000) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
        "characters"),
    "nested lists": ("{% set ns = namespace(x=[1]) %}{% for i in range(100) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}", "elements"),
    "nested dicts": ("{% set ns = namespace(x=1) %}{% for i in range(100) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x }}", "elements"),
    "nested by calls": ("{% set ns = namespace(x=1) %}{% for i in range(100) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}", "elements"),
    "join with long glue": ("{{ range(99999) | list | join('b' * 100000) }}", "characters"),
    "center": ("{{ 'a'.center(10**9) }}", "center"),
    "huge indent": ("{{ 'a\nb' | indent(10**9) }}", "indent"),
    "json indent": ("{{ [1] | tojson(indent=10**9) }}", "indent"),
    "endless output": ("{% for i in range(99999) %}{{ 'x' * 10000 }}{% endfor %}", "characters"),
    "syntax error": ("{% for %}", "line 1"),
    "undefined": ("{{ foo.bar.baz }}", "foo"),
    "raise_exception": ("{{ raise_exception('no system message') }}", "no system message"),
    "template too long": ("x" * (2 << 20), "characters"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_template(name: str) -> None:
    source, words = HOSTILE[name]
    start = time.monotonic()
    with pytest.raises(TemplateError, match=words):
        ChatTemplate(source).render(CONVERSATION)
    assert time.monotonic() - start < 20


def test_a_template_works_after_a_failure() -> None:
    template = ChatTemplate("{{ 1 / (messages | length - 1) }}")
    with pytest.raises(TemplateError):
        template.render(CONVERSATION[:1])
    assert template.render(CONVERSATION[:3]) == "0.5"
