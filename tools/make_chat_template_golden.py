#!/usr/bin/env python3
"""Writes tests/golden/text/chat_templates.json: what transformers renders from chat templates.

The templates under tests/golden/text/templates are data that published models carry (SmolLM2,
Qwen2.5, Qwen3, Llama 3, 3.1 and 3.2, Gemma 2, TinyLlama). Each is rendered over the conversations
below with transformers' own render_jinja_template; single constructs are rendered too. A case that
raises in Python is kept with `error`. Needs transformers and jinja2.
"""
import json
import pathlib

from transformers.utils import chat_template_utils

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/text"
TOKENS = {
    "smollm2": ("<|im_start|>", "<|im_end|>"),
    "qwen2.5": (None, "<|im_end|>"),
    "qwen3": (None, "<|im_end|>"),
    "gemma2": ("<bos>", "<eos>"),
    "tinyllama": ("<s>", "</s>"),
}
LLAMA = ("<|begin_of_text|>", "<|eot_id|>")


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather \"now\" in a <place> – °C & more",
    "parameters": {"type": "object", "properties": {
        "place": {"type": "string", "enum": ["Zürich", "東京"]}, "days": {"type": "integer", "default": 3},
        "scale": {"type": "number", "default": 1.5}, "empty": {}, "none": None, "flags": [True, False, []]},
        "required": ["place"]}}}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"place": "東京", "days": 2}}}
TEXT_CALL = {"type": "function", "function": {"name": "get_weather", "arguments": '{"place": "Bern"}'}}
NAMED_CALL = {"name": "get_weather", "arguments": {"place": "x"}}

CONVERSATIONS = [
    [user("Hi")],
    [system("Be brief."), user("Hi")],
    [user("A"), assistant("B"), user("C")],
    [system("  spaces  \n"), user("\n\tA  "), assistant("  B\n\n"), user("C"), assistant("D")],
    [user(""), assistant("")],
    [system(""), user("x")],
    [user("naïve 東京 🙂‍↔️ \u00a0\u2003\u3000 \u200b end\u2028"), assistant("\r\n\x00\x1f\x7f{{ 7 }} {% if %} 'q' \"d\" \\n")],
    [user("<|im_start|>system\nx<|im_end|> <|eot_id|>"), assistant("<think>\n\nreason\n</think>\n\nanswer")],
    [user("a"), assistant("<think>one</think>two"), user("b"), assistant("<think>\nthree</think>\n\n\nfour")],
    [user("a"), assistant("b", reasoning_content="\nwhy\n"), user("c"), assistant("d", reasoning_content="because")],
    [user("a"), user("b"), system("late"), assistant("c"), assistant("d")],
    [assistant("first")],
    [system("only")],
    [user("w?"), assistant("", tool_calls=[CALL]), {"role": "tool", "content": "21"}, assistant("It is 21.")],
    [user("w?"), assistant("let me see", tool_calls=[CALL, TEXT_CALL, NAMED_CALL]), {"role": "tool", "content": "1"},
     {"role": "tool", "content": "2"}, user("so?"), assistant("1 and 2")],
    [user("w?"), assistant(None, tool_calls=[NAMED_CALL]), {"role": "ipython", "content": {"a": [1, 2.0, None]}}, user("?")],
    [user("x"), {"role": "tool", "content": "<tool_response>\n3\n</tool_response>"}],
    [user("<tool_response>fake</tool_response>"), assistant("ok")],
    [{"role": "ünknown", "content": "role"}],
    [user(["parts"]), assistant("x")],
    [{"role": "user"}],
    [],
]
DATE = {"date_string": "26 Jul 2024"}  # Llama 3.2 asks strftime_now otherwise
SETTINGS = [  # "for": the beginning of the names of the templates that it is for
    {"add_generation_prompt": False, **DATE},
    {"add_generation_prompt": True, **DATE},
    {"add_generation_prompt": True, "tools": [WEATHER], **DATE, "for": "qwen"},
    {"add_generation_prompt": True, "tools": [WEATHER], **DATE, "for": "llama3."},
    {"add_generation_prompt": True, "enable_thinking": False, "for": "qwen3"},
    {"tools": [WEATHER, WEATHER], "tools_in_user_message": False, **DATE, "for": "llama3."},
    {"custom_tools": [WEATHER], "builtin_tools": ["get_weather", "code_interpreter"], **DATE, "for": "llama3."},
]

VARIABLES = {
    "x": {"b": [1, 2.5, None, True, "é\n\x01\"\\/\u2028'"], "a": {}, "c": [], "items": 3},
    "text": "  Hello wörld ßtraße ǆ 東京 🙂 \u2003", "words": "a,b,,c", "lines": "one\r\ntwo\n\nthree",
    "messages": [{"role": "user", "n": 2}, {"role": "b", "n": 10}, {"role": "user", "n": -1}],
    "nothing": None, "seven": 7, "half": 0.5, "tools": [],
}
SOURCES = [
    "{% set y = 1 %}{% for i in range(3) %}{{ y }}{% set y = y + 1 %}{% endfor %}|{{ y }}",
    "{% for i in range(3) %}{% if i==0 %}{% set y = 7 %}{% endif %}{{ y }},{% endfor %}|{{ y }}",
    "{% set y=1 %}{% generation %}{{ y }}{% set y = 5 %}{{ y }}{% endgeneration %}{{ y }}",
    "{% set y=1 %}{% macro f(a, b=2) %}{{ y }}{{ a }}{{ b }};{% set y=9 %}{% endmacro %}{{ f(1) }}{{ f(3, b=4) }}{{ y }}{% set y=2 %}{{ f(0) }}{{ f() }}",
    "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}",
    "{{ {'a':1,'b':[1,'x\\'y',\"d\\\"\",none,true,1.5,1e20,(1,),(1,2),()]} }} {{ 'a' if false }}|{{ nope }}|{{ nope ~ 1 }}",
    "{{ 1e16 }} {{ 1.0 }} {{ 1e-5 }} {{ 0.0001 }} {{ 123456789012345680.0 }} {{ 7//-2 }} {{ -7%3 }} {{ 7%-3 }} {{ 2**3 }} {{ 1/2 }} {{ 2**-1 }} {{ -2**2 }} {{ 1_000 }} {{ 7.5//2 }} {{ -7.5%2 }}",
    "{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ not 1 == 2 }} {{ 'a' in 'abc' }} {{ 1 not in [1] }} {{ 'b' in x }} {{ 'x' < 'y' }} {{ [1,2] < [1,3] }} {{ 1 == 1.0 }} {{ true == 1 }} {{ none == nope }} {{ nope == nada }}",
    "{{ x.y.z }}", "{{ x.y }}|{{ x['items'] }}|{{ x.get('q') }}|{{ x.get('q', 2) }}|{{ nothing.foo }}|{{ seven.foo }}|{{ 'a'.foo }}|{{ messages[9] }}|{{ messages[-1].n }}",
    "{{ [1,2]|length }} {{ 'y'|default('z') }} {{ nope|default('y') }} {{ ''|default('y', true) }} {{ none|default('z') }} {{ nope|d }}.",
    "{{ nope + 'a' }}", "{% for i in none %}{% endfor %}", "{{ nope() }}", "{{ 'a'.foo() }}", "{{ 'x' + 1 }}", "{{ 1 < 'a' }}", "{{ 1/0 }}",
    "{{ text|trim }}|{{ text|upper }}|{{ text|lower }}|{{ text|title }}|{{ text.title() }}|{{ text|capitalize }}|{{ text.strip().capitalize() }}|{{ text|length }}|{{ 'a-b (c'|title }}",
    "{{ text[2:7] }}|{{ text[::-1] }}|{{ text[-3:] }}|{{ text[100:] }}|{{ text[-100:3] }}|{{ text[7] }}|{{ text[::5] }}|{{ words[:-1] }}|{{ words[5:1:-2] }}|{{ [1,2,3,4][1:3] }}|{{ (1,2,3)[::-1] }}",
    "{{ words.split(',') }}|{{ words.split(',', 1) }}|{{ words.rsplit(',', 1) }}|{{ text.split() }}|{{ ' a  b c '.split(None, 1) }}|{{ lines.splitlines() }}|{{ lines.splitlines(true) }}|{{ words.split(',')|last }}|{{ words.split(',')|first }}",
    "{{ words.startswith('a,') }} {{ words.endswith(('x','c')) }} {{ words.replace(',', '-') }} {{ words.replace(',', '', 2) }} {{ 'ab'.replace('', '-') }} {{ words.find('b') }} {{ words.rfind('z') }} {{ words.count(',') }} {{ ','.join(['x','y']) }} {{ 'aXb'.removeprefix('a') }} {{ 'aXb'.removesuffix('b') }} {{ '..a.'.strip('.') }} {{ 'xya'.lstrip('yx') }} {{ 'abc\n\n'.rstrip('\n') }}",
    "{{ 'AB'.isupper() }} {{ 'ab1'.islower() }} {{ '12'.isdigit() }} {{ ' '.isspace() }} {{ 'Ab'.lower() }} {{ 'Ab'.upper() }}",
    "{{ messages|selectattr('role','equalto','user')|list|length }} {{ messages|rejectattr('role','eq','user')|list }} {{ messages|map(attribute='n')|list }} {{ messages|map(attribute='n')|sum }} {{ messages|sum(attribute='n') }} {{ messages|map(attribute='n')|max }} {{ messages|map(attribute='n')|min }} {{ messages|sort(attribute='n')|map(attribute='n')|join(',') }} {{ messages|selectattr('n', 'gt', 1)|map(attribute='n')|join('/') }} {{ messages|map(attribute='role')|unique|list }} {{ messages|selectattr('zzz')|list }}",
    "{{ ['b','A','c']|sort }} {{ ['b','A','c']|sort(reverse=true) }} {{ [3,1]|sort|first }} {{ ['x','Y']|map('upper')|list }} {{ [0,1,2]|select|list }} {{ [0,1,2]|select('odd')|list }} {{ [0,1,2]|reject('odd')|list }} {{ 'abc'|reverse }} {{ [1,2]|reverse|list }} {{ x|dictsort }} {{ 'abc'|list }}",
    "{{ [none,true]|join(',') }} {{ ['a','b']|join }} {{ 3|string ~ 4 }} {{ '7'|int + 1 }} {{ 'x'|int }} {{ '1.9'|int }} {{ 2.9|int }} {{ '1.5'|float }} {{ -3|abs }} {{ 2.5|round }} {{ 3.5|round|int }}",
    "{{ x|tojson }} {{ x|tojson(indent=2) }} {{ x|tojson(separators=(',',':'), sort_keys=true) }} {{ 'é🙂'|tojson(ensure_ascii=true) }} {{ [[]]|tojson(indent=4) }} {{ []|tojson(indent=4) }} {{ 1e22|tojson }} {{ (1,)|tojson }}",
    "{{ nope|tojson }}", "{{ 'a\nb\n\nc'|indent }}|{{ 'a\nb'|indent(2, true) }}|{{ 'a\n\nb\n'|indent(width=1, blank=true) }}",
    "a\r\nb\rc\n\n", "a\n", "", "\n", "{{ 'x' }}\n", "{% if true %}\n",
    "  {%- if true %}  \n  x\n  {% endif %}  \n y {#- c -#}  z {#+ d #}\n  {#+ d +#}\n e",
    "<\n  {% if true %}\n    a\n  {%+ if true %}\n  b\n  {% endif +%}\n{% endif -%}\n\n >",
    "x{% if true %}y{% endif %}\n\nz {{- 1 -}}   w\n  {{ 2 }}\n   {# c #}\n   v",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set c %}x{{ a }}{% endset %}{{ c }}{% set d | upper | replace('X', 'z') %}x{{ a }}{% endset %}{{ d }}",
    "{% for a in [1,2,3] if a != 2 %}{{ loop.index }}/{{ loop.length }}:{{ a }} {{ loop.previtem }} {{ loop.nextitem }} {{ loop.revindex }} {{ loop.revindex0 }} {{ loop.first }} {{ loop.last }} {{ loop.depth }} {{ loop.cycle('x','y') }};{% else %}none{% endfor %}",
    "{% for a in [] %}x{% else %}none{% endfor %}{% for a in nope %}x{% else %}undefined{% endfor %}",
    "{% for a,b in x.items() %}{{ a }}={{ b }};{% endfor %}{% for c in 'aé🙂' %}{{ c }},{% endfor %}{% for k in x %}{{ k }}{% endfor %}{% for k, v in x|items %}{{ k }}{% endfor %}{{ x|items|list }}",
    "{% for i in range(5) %}{% if i==1 %}{% continue %}{% endif %}{% if i==3 %}{% break %}{% endif %}{{ i }}{% endfor %} {{ range(5, 0, -2)|list }} {{ range(2, 4)|list }}",
    "{% for i in [1,2] %}{% for j in [3,4] %}{{ loop.index }}{{ loop.depth }}{% if j == 3 %}{% continue %}{% endif %}{{ i }}{{ j }} {% endfor %}{{ loop.index }}{% endfor %}",
    "{% set ns = namespace(a=1, b='x') %}{% for i in [1,2] %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }} {{ ns.c }} {{ ns.b }}", "{% set x.b = 1 %}",
    "{% raw %}{{ x }}{% endraw %} a {%- raw -%}  b {% endraw %}\n c", "{{ '\\x41\\u00e9\\101\\q\\n\\U0001F642' }}", "{{ 'a' 'b' }}{{ \"it's\" }}",
    "{{ 1 is defined and 2 is not none }} {{ 'x' is string }} {{ true is number }} {{ true is integer }} {{ 1.0 is float }} {{ () is sequence }} {{ {} is iterable }} {{ {} is mapping }} {{ 'a' is sequence }} {{ 3 is divisibleby 3 }} {{ 3 is eq 3 }} {{ 3 is odd }} {{ 4 is even }} {{ none is none }} {{ nope is undefined }} {{ false is false }} {{ 1 is true }} {{ 'A' is upper }} {{ 2 is in [1,2] }} {{ x.a is defined }} {{ x.q is not defined }} {{ raise_exception is defined }} {{ nothing is iterable }} {{ nope is iterable }} {{ 'a' is sameas 'a' }} {{ 2 is gt 1 }} {{ true is boolean }}",
    "{{ not true or true and false }} {{ 1 or 2 }} {{ 0 or 2 }} {{ '' and 'a' }} {{ 1 if 0 else 2 if 0 else 3 }} {{ (1 if true else 2) + 1 }} {{ 'a' ~ 'b' + 'c' ~ 1 }} {{ 2 + 3 * 4 - 1 }} {{ (2 + 3) * 4 }} {{ -seven|abs }} {{ - -seven }} {{ 10 - 2 - 3 }} {{ 'ab' * 2 }} {{ [1] * 2 + [3] }} {{ 1, 2 }} {{ () }} {{ [] }} {{ {} }}",
    "{{ dict(a=1, b=x.c) }} {{ dict({'q': 1}, r=2) }} {{ true }} {{ True }} {{ none }} {{ None }} {{ [true, false, none] }}",
    "{{ '日本'|tojson }} {{ ['日本', '\x7f', '\u200b', '\xa0'] }} {{ ['🙂', '\\n\\t\\r'] }}",
    "{% if nope %}a{% elif seven == 7 %}b{% else %}c{% endif %}{% if not tools %}no tools{% endif %}",
    "{{ messages[0]['role'] }}{{ messages.0.role }}{{ x.b[4][0] }}{{ messages[1:][0].n }}{{ (messages|last).n }}{{ messages[::-1][0].n }}",
    "{{- '<' -}}\n  {%- set loop_messages = messages -%}\n{%- for m in loop_messages -%}\n  {{- m.role ~ '\n' -}}\n{%- endfor %}\n",
    "{{ raise_exception('No ' + 'way') }}", "{{ strftime_now('%Y')|length }}", "{{ 'x' | replace('x', 'y') | upper }}",
    "{% set a = [1, 2, 3,] %}{{ a }}{{ {'k': 'v',} }}{{ a.index(2) }}{{ a.count(9) }}", "{{ a.b.c.d }}", "{{ x.values()|list|length }}{{ x.keys()|list }}",
    "{% if (seven == 7) != (loop is defined) %}ok{% endif %}", "{{ messages|length > 2 and messages[0].role == 'user' }}",
]


def attempt(render):
    try:
        return {"expected": render()}
    except Exception as error:  # any failure of Python's is a failure that ours must be too
        return {"error": f"{type(error).__name__}: {error}"}


def main():
    cases = []
    for path in sorted((FOLDER / "templates").glob("*.jinja")):
        source = path.read_text()
        bos, eos = TOKENS.get(path.stem, LLAMA)
        tokens = {key: value for key, value in (("bos_token", bos), ("eos_token", eos)) if value}
        for index, conversation in enumerate(CONVERSATIONS):
            for number, setting in enumerate(SETTINGS):
                if not path.stem.startswith(setting.get("for", "")):
                    continue
                variables = {key: value for key, value in setting.items() if key != "for"}
                arguments = {"add_generation_prompt": False, "tools": None} | variables
                result = attempt(lambda: chat_template_utils.render_jinja_template(
                    [conversation], chat_template=source, **arguments, **tokens)[0][0])
                cases.append({"template": path.stem, "messages": index, "settings": number, **result})
    expressions = []
    for source in SOURCES:
        template = lambda: chat_template_utils._compile_jinja_template(source).render(**VARIABLES)
        expressions.append({"source": source, **attempt(template)})
    tokens = {path.stem: TOKENS.get(path.stem, LLAMA) for path in (FOLDER / "templates").glob("*.jinja")}
    golden = {"tokens": tokens, "variables": VARIABLES, "messages": CONVERSATIONS,
              "settings": SETTINGS, "expressions": expressions, "conversations": cases}
    text = json.dumps(golden, ensure_ascii=False, indent=None, separators=(",", ":"))
    (FOLDER / "chat_templates.json").write_text(text.replace('},{"template"', '},\n{"template"').replace('},{"source"', '},\n{"source"') + "\n")
    failed = sum("error" in case for case in cases)
    print(f"{len(cases)} conversations ({failed} refused), {len(expressions)} expressions")


if __name__ == "__main__":
    main()
