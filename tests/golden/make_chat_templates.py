"""Writes data/chat/cases.jsonl: what jinja2, set up as in Transformers, renders from chat templates.

    python make_chat_templates.py

data/chat/*.jinja are written by hand in the shape of published templates. README.md lists what is written.
"""

import json
import pathlib

from jinja2.exceptions import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

DATA = pathlib.Path(__file__).parent / "data" / "chat"


def make_environment():
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])

    def raise_exception(message):
        raise TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment


def say(role, content, **more):
    return {"role": role, "content": content} | more


USER, ANSWER = say("user", "Hi there"), say("assistant", "  Hello!\n")
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": "1", "b": "<2>"}}}
TEXT_CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds “a” & b", "parameters": {"x": [1, 2.5, True, None, {}, []]}}}
CHATS = [
    [USER], [say("system", "Be brief."), USER], [USER, ANSWER, say("user", "  你好 😀 \n\nagain")],
    [say("system", "One."), say("system", "Two."), USER, ANSWER, say("user", "")],
    [USER, say("assistant", "<think>\nhm\n</think>\n\nYes."), USER], [ANSWER], [USER, USER],
]
TOOL_CHATS = [
    [USER, say("assistant", None, tool_calls=[CALL]), say("tool", "3")],
    [USER, say("assistant", "Calling.", tool_calls=[CALL]), say("tool", "3"), say("assistant", "It is 3.")],
    [USER, say("assistant", "", tool_calls=[TEXT_CALL, TEXT_CALL]), say("tool", "3"), say("tool", "4"), ANSWER, USER],
]
VARIABLES = [{}, {"tools": [TOOL]}, {"builtin_tools": ["add", "code_interpreter", "search"]}, {"tools": [TOOL], "tools_in_user_message": False}]

# Small templates: one construct each. `x`, `n`, `s`, `l`, `d` are variables.
SNIPPETS = [
    "{{ s }}", "{{ n + 1 }} {{ n - 5 }} {{ n * 2 }} {{ n / 2 }} {{ n // 2 }} {{ n % 2 }} {{ -n // 2 }} {{ -n % 2 }} {{ 2.5 * 2 }}",
    "{{ 1 + 2 * 3 - 4 }} {{ (1 + 2) * 3 }} {{ 'a' ~ 1 ~ none ~ true }} {{ 'a' 'b' }} {{ 7 - 2 - 1 }} {{ - 3 }}",
    "{{ 1 == 1.0 }} {{ 'a' != 'b' }} {{ 1 < 2 }} {{ 'a' <= 'b' }} {{ 2 >= 3 }} {{ true == 1 }} {{ none == false }} {{ [1, 2] == [1, 2] }}",
    "{{ 'a' in 'cat' }} {{ 3 in l }} {{ 3 not in l }} {{ 'k' in d }} {{ 'z' not in d }} {{ 'a' in ['a', 'b'] }} {{ 'a' in missing }}",
    "{{ true and false or true }} {{ not true or true }} {{ not (true or true) }} {{ '' or 'x' }} {{ 0 and 1 }} {{ not missing }}",
    "{{ 'yes' if n > 2 else 'no' }} {{ 'yes' if n > 9 }}|{{ 1 if false else 2 if false else 3 }}",
    "{{ l[0] }} {{ l[-1] }} {{ l[9] }}| {{ s[0] }} {{ s[-1] }} {{ d.k }} {{ d['k'] }} {{ d.none }}| {{ d.deep.er }} {{ d['deep']['er'] }}",
    "{{ l[1:]|tojson }} {{ l[:-1]|tojson }} {{ l[::-1]|tojson }} {{ l[::2]|tojson }} {{ l[5:1:-2]|tojson }} {{ l[-2:]|tojson }} {{ l[10:]|tojson }} {{ l[:]|tojson }}",
    "{{ s[1:] }} {{ s[:3] }} {{ s[::-1] }} {{ s[2:4] }} {{ '你好世界'[1:3] }} {{ 'abc'[::-2] }}",
    "{{ '  a b '|trim }}| {{ 'xaxx'|trim('x') }} {{ 'aB'|upper }} {{ 'aBÉ'|lower }} {{ 'hELLO wORLD'|capitalize }} {{ 5|string }} {{ '42'|int + 1 }}",
    "{{ l|length }} {{ s|count }} {{ d|length }} {{ l|first }} {{ l|last }} {{ l|join }} {{ l|join('-') }} {{ 'abc'|list|join(',') }} {{ d|list|join(' ') }}",
    "{{ missing|default('x') }} {{ s|default('x') }} {{ ''|default('x', true) }} {{ none|d('x') }} {{ missing|d }}|",
    "{{ 'a-b-c'|replace('-', '+') }} {{ 'aaa'.replace('a', 'b', 2) }} {{ s|replace('l', 'L')|upper|lower }}",
    "{{ d|tojson }} {{ s|tojson }} {{ none|tojson }} {{ true|tojson }} {{ 1.5|tojson }} {{ '<&\"\\\\\\n\u00e9\u4f60'|tojson }} {{ {}|tojson }} {{ []|tojson }}",
    "{{ d|tojson(separators=(',', ':')) }} {{ l|tojson(separators=[' ; ', '=']) }}\n{{ d|tojson(indent=1, separators=(',', ':')) }} {{ l|tojson(separators=none) }}",
    "{{ d|tojson(indent=2) }}\n{{ l|tojson(indent=4) }}", "{% for k, v in d|items %}{{ k }};{% endfor %}{% for k, v in d.items() %}{{ k }},{% endfor %}",
    "{{ d.keys()|list|tojson }} {{ d.get('k') }} {{ d.get('zz') }} {{ d.get('zz', 5) }} {{ d['deep'].values()|list|tojson }}",
    "{{ 'a b  c'.split()|tojson }} {{ 'a,b,,c'.split(',')|tojson }} {{ 'a,b,c'.split(',', 1)|tojson }} {{ ' a b c '.split(none, 1)|tojson }} {{ ''.split()|tojson }} {{ ''.split(',')|tojson }}",
    "{{ ' a '.strip() }}| {{ ' a '.lstrip() }}| {{ ' a '.rstrip() }}| {{ '\\n a \\n'.strip('\\n') }}| {{ 'xyaxy'.strip('yx') }} {{ 'Ab'.upper() }} {{ 'Ab'.lower() }} {{ 'ab'.capitalize() }}",
    "{{ s.startswith('he') }} {{ s.endswith('x') }} {{ s.startswith(('x', 'h')) }} {{ ', '.join(['a', 'b']) }}",
    "{{ missing is defined }} {{ s is defined }} {{ missing is undefined }} {{ none is none }} {{ s is not none }} {{ s is string }} {{ l is string }} {{ d is mapping }} {{ l is mapping }}",
    "{{ l is iterable }} {{ n is iterable }} {{ s is sequence }} {{ n is number }} {{ n is integer }} {{ 1.5 is float }} {{ true is boolean }} {{ true is true }} {{ 1 is true }} {{ false is false }}",
    "{{ 3 is odd }} {{ 3 is even }} {{ 9 is divisibleby 3 }} {{ 9 is divisibleby(2) }} {{ 1 is in [1, 2] }} {{ 'a' is equalto 'a' }} {{ 1 is eq 2 }} {{ 1 is ne(2) }} {{ not s is string }}",
    "{% if n == 1 %}one{% elif n == 5 %}five{% else %}other{% endif %}", "{% if not n %}a{% elif n %}b{% elif n %}c{% endif %}",
    "{% for i in range(3) %}{{ i }}{% if not loop.last %}, {% endif %}{% endfor %} {% for i in range(5, 0, -2) %}{{ i }}{% endfor %} {% for i in range(2, 4) %}{{ i }}{% endfor %}",
    "{% for x in l %}{{ loop.index }}/{{ loop.index0 }}/{{ loop.revindex }}/{{ loop.revindex0 }}/{{ loop.length }}/{{ loop.first }}/{{ loop.last }}/{{ loop.previtem }}/{{ loop.nextitem }} {% endfor %}",
    "{% for x in [] %}a{% else %}empty{% endfor %}{% for x in l if x > 2 %}{{ loop.index }}:{{ x }} {% else %}none{% endfor %}{% for x in l if x > 99 %}{{ x }}{% else %}none{% endfor %}",
    "{% for x in l %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 4 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% for a in l[:2] %}{% for b in l[:2] %}{{ a }}{{ b }}{{ loop.index }} {% endfor %}{{ loop.index }};{% endfor %}", "{% for c in 'héy' %}{{ c }}.{% endfor %}{% for k in d %}{{ k }}.{% endfor %}{% for x in missing %}{{ x }}{% endfor %}",
    "{% set x = 1 %}{% for i in l %}{% set x = x + i %}{{ x }} {% endfor %}{{ x }}", "{% set ns = namespace(x=0, y='a') %}{% for i in l %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}{{ ns.y }}{{ ns.z }}",
    "{% if true %}{% set y = 'seen' %}{% endif %}{{ y }}", "{% set t %}a {{ s }} b{% endset %}[{{ t }}]{{ t|length }}", "{% set t = [1, 'a', [2]] + [3] %}{{ t|tojson }} {{ {'a': 1, 'b': {'c': [1, 2,]},}|tojson }} {{ (1, 2)|tojson }} {{ ()|length }}",
    "{{ l|select('odd')|list|tojson }} {{ l|reject('equalto', 2)|list|tojson }} {{ m|selectattr('r', 'equalto', 'u')|list|length }} {{ m|rejectattr('r')|list|length }} {{ m|map(attribute='r')|join(',') }} {{ m|selectattr('c')|first|tojson }}",
    "a\n{% if true %}\nb\n{% endif %}\nc\n", "a\n  {% if true %}\n    b\n  {% endif %}\nc\n", "a\n  {%+ if true %}\n    b\n  {%- endif %}\nc", "a  {%- if true -%}  b  {%- endif -%}  c", "a \n {{- 'b' -}} \n c", "a {{ 'b' }}\n\nc\n\n",
    "a{# comment #}b\n  {# comment #}\nc {#- comment -#} d", "{# {{ no }} {% no %} #}x", "  {% if true %}x{% endif %}  {% if true %}y{% endif %}\n", "{{ s }}  {% if true %}  {{ s }}{% endif %}", "\n\n{% set x = 1 %}\n\n{{ x }}\n\n", "a\r\n{% if true %}\r\nb\r\n{% endif %}c\r\n",
    "{{ '}}' }} {{ '%}' }} {{ \"a'b\" }} {{ 'a\"b' }} {{ 'a\\'b' }} {{ '\\t|\\x41\\u4f60\\\\n' }} {{ {'a': {'b': 1}}['a']['b'] }} {{ '{{' }}", "{ { } } {} % # {a} }} %} #}", "{{-s-}}|{{- s -}}",  "{{ s }}",
    "{{ messages[0].content }} {{ messages[-1]['role'] }} {{ messages|length }} {{ (messages|first)['role'] }} {{ bos_token + eos_token }}", "{{ s|trim + '!' }} {{ 'a' + n|string }} {{ l|length + 1 }} {{ not l|length == 4 }} {{ -n|string|length }}",
    "{{ loop is defined }} {{ strftime_now is defined }}", "{{ true }} {{ none }} {{ 1.0 }} {{ 0.1 + 0.2 }} {{ 10 // 3 }} {{ 10 / 5 }} {{ 1000000 * 1000000 }}",
]
ERRORS = [
    "{{ raise_exception('refused: ' + s) }}", "{{ missing.x }}", "{{ missing['x'] }}", "{{ 1 + 'a' }}", "{{ none + 'a' }}", "{{ 1 / 0 }}", "{{ 1 < 'a' }}", "{{ s.x.y }}", "{{ nothing(1) }}", "{{ none|length }}", "{% for a, b in l %}{% endfor %}",
    "{% for x in n %}{% endfor %}", "{% set s.x = 1 %}", "{{ ''.split('') }}", "{% if %}{% endif %}", "{% for x in l %}", "{{ s", "{% if s %}{% endfor %}", "{{ 'a }}", "{{ s|nofilter }}", "{{ s is notest }}", "{% nostatement %}", "{{ (1 }}", "{{ 1 2 }}", "{{ s. }}", "{{ $ }}",
]
SNIPPET_VARIABLES = {"s": "hello", "n": 5, "l": [1, 2, 3, 4], "d": {"k": "v", "deep": {"er": 1}, "a": [1, {"b": None}]}, "m": [{"r": "u", "c": "x"}, {"r": "a"}, {"r": ""}]}


def make_case(environment, case, source):
    tokens = {"bos_token": "<BOS>", "eos_token": "<EOS>"}
    try:
        template = environment.from_string(source)
        case["expected"] = template.render(
            messages=case["messages"], add_generation_prompt=case["add_generation_prompt"], **tokens, **case["variables"]
        )
    except Exception as error:
        case["error"] = str(error)
    return case


def make_cases():
    environment = make_environment()
    for path in sorted(DATA.glob("*.jinja")):
        for chat in CHATS + TOOL_CHATS:
            for variables in VARIABLES if chat in TOOL_CHATS + CHATS[1:3] else VARIABLES[:1]:
                for prompt in [True, False]:
                    case = {"file": path.name, "messages": chat, "add_generation_prompt": prompt, "variables": variables}
                    yield make_case(environment, case, path.read_text())
    for source in SNIPPETS + ERRORS:
        case = {"source": source, "messages": CHATS[1], "add_generation_prompt": True, "variables": SNIPPET_VARIABLES}
        case = make_case(environment, case, source)
        assert ("error" in case) == (source in ERRORS), case
        yield case


def main():
    lines = [json.dumps(case, ensure_ascii=False, separators=(",", ":")) + "\n" for case in make_cases()]
    (DATA / "cases.jsonl").write_text("".join(lines), newline="\n")


if __name__ == "__main__":
    main()
