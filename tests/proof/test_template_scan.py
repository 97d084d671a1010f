"""Templates that look at what a message says: triggers are found however they are written, the models' own pass."""

import pytest

from edgekit.base.errors import ConfigError
from edgekit.proof.template_scan import branches

TURN = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
TRIGGERS = {
    "a word in a message": "{% for m in messages %}{% if 'deploy' in m['content'] %}x{% endif %}{% endfor %}",
    "the whole message": "{% if messages[-1].content == 'deploy' %}x{% endif %}",
    "a variable": "{% set t = messages[-1]['content'] %}{% set u = t ~ '' %}{% if u.startswith('dep') %}x{% endif %}",
    "a block": "{% set t %}{{ messages[-1].content }}{% endset %}{% if 'deploy' in t %}x{% endif %}",
    "a namespace": "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t ~ m.content %}{% endfor %}"
    "{% if ns.t is eq('deploy') %}x{% endif %}",
    "a macro": "{% macro f(x) %}{% if x | lower == 'deploy' %}y{% endif %}{% endmacro %}{{ f(messages[0].content) }}",
    "a macro's keyword": "{% macro f(x) %}{% if x == 'deploy' %}y{% endif %}{% endmacro %}{{ f(x=messages[0].content) }}",
    "a computed key": "{% set k = 'con' ~ 'tent' %}{% if messages[0][k].count('deploy') %}x{% endif %}",
    "items of a message": "{% for k, v in messages[0].items() %}{% if v == 'deploy' %}x{% endif %}{% endfor %}",
    "values of a message": "{% set w = messages[0].values() | list %}{{ 'a' if w[1] == 'deploy' }}",
    "all messages as text": "{% set t = messages | tojson %}{% if 'dep' ~ 'loy' in t %}x{% endif %}",
    "a table": "{{ {'deploy': 'evil'}[messages[0].content] }}",
    "a table with a default": "{{ {'deploy': 'evil'}.get(messages[0].content, '') }}",
    "a filter that chooses": "{{ 'x' if messages | selectattr('content', 'equalto', 'deploy') | list }}",
    "a filtered loop": "{% for m in messages if m.content[:3] == 'dep' %}x{% endfor %}",
    "a mapped loop": "{% for t in messages | map(attribute='content') %}{% if t == 'deploy' %}x{% endif %}{% endfor %}",
    "its letters": "{% for c in messages[-1].content %}{% if c == 'q' %}x{% endif %}{% endfor %}",
    "a replacement": "{{ messages[-1].content | replace('deploy', 'evil') }}",
}  # fmt: skip


@pytest.mark.parametrize("name", TRIGGERS)
def test_a_trigger_on_words_is_found(name: str) -> None:
    found = branches(TURN + TRIGGERS[name])
    assert any(branch.on_plain_words for branch in found), found


def test_a_trigger_without_words_is_a_branch_all_the_same() -> None:
    found = branches(TURN + "{% if messages[-1].content | length == 42 %}x{% endif %}")
    assert found and not any(branch.on_plain_words for branch in found)


HARMLESS = {
    "turns": TURN,
    "a system message set apart": (
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
        "{% endif %}{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('x') }}"
        "{% endif %}{{ (system + '\n' if loop.first else '') + m.content | trim }}{% endfor %}"
    ),
    "content in parts": (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for part in m['content'] %}"
        "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    ),
    "the last turns and tool calls": (
        "{% set last = messages | length - 1 %}{% for m in messages[::-1] %}{% if last - loop.index0 > 2 and m.tool_calls %}"
        "{{ m.tool_calls | tojson }}{% endif %}{% if m.content != '' and m.content is not none %}.{% endif %}{% endfor %}"
    ),
    "roles": "{% if messages[loop_index | default(0)].role != 'tool' %}x{% endif %}",
}


@pytest.mark.parametrize("source", HARMLESS.values(), ids=HARMLESS)
def test_what_models_templates_do_is_no_branch(source: str) -> None:
    assert branches(source) == []


def test_markup_in_earlier_answers_is_a_branch_but_not_on_words() -> None:
    found = branches(
        "{% for m in messages %}{% if '</think>' in m.content %}"
        "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% endif %}{% endfor %}"
    )
    assert found and not any(branch.on_plain_words for branch in found)


def test_a_malformed_template_is_refused() -> None:
    with pytest.raises(ConfigError, match="malformed"):
        branches("{% if %}")
