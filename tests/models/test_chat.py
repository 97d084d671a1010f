"""Chat templates: byte for byte as transformers renders them, and never free to run code."""

import json
from concurrent.futures import ThreadPoolExecutor

import hostile_templates
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError

from edgekit.base.errors import ConfigError, CorruptError
from edgekit.models.chat import ChatTemplate
from edgekit.proof.battery import conversations

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BLOCKS = """{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {% generation %}{{ message.content | tojson }}{{ eos_token }}{% endgeneration %}
    {%- elif loop.last %}
        {% continue %}
    {%- else %}
  {{ message.content | trim }}
    {%- endif %}
{%- endfor %}"""
TEXT = st.text(st.characters(blacklist_categories=["Cs"]))


@pytest.mark.parametrize("source", [CHATML, BLOCKS, None], ids=["chatml", "blocks", "sample"])
@settings(deadline=None, max_examples=40)
@given(contents=st.lists(TEXT, min_size=1, max_size=4), prompt=st.booleans())
def test_renders_as_transformers_does(source: str | None, contents: list[str], prompt: bool) -> None:
    tokenizer = tiny.tokenizer()
    source = source or tokenizer.chat_template
    messages = [
        {"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(contents)
    ]
    ours = ChatTemplate(source, tokenizer.bos_token, tokenizer.eos_token).render(
        messages, add_generation_prompt=prompt
    )
    theirs = tokenizer.apply_chat_template(
        messages, chat_template=source, add_generation_prompt=prompt, tokenize=False
    )
    assert ours == theirs


def test_prompt_and_answer_make_the_whole() -> None:
    template = ChatTemplate(CHATML)
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]
    prompt, answer = template.prompt_and_answer(messages)
    assert prompt + answer == template.render(messages)
    assert answer == "r<|im_end|>\n"


def test_a_prompt_that_the_answer_does_not_continue_is_refused() -> None:
    template = ChatTemplate("{{ messages | length }}{% if add_generation_prompt %}assistant{% endif %}")
    with pytest.raises(ConfigError, match="does not begin with its own prompt"):
        template.prompt_and_answer([{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}])


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
    ],
)
def test_a_template_cannot_reach_python(attack: str) -> None:
    with pytest.raises(ConfigError, match="refused"):
        ChatTemplate(attack).render([{"role": "user", "content": "q"}])


def test_unicode_stays_unicode_in_tojson() -> None:
    assert ChatTemplate("{{ messages[0].content | tojson }}").render(
        [{"role": "user", "content": "é"}]
    ) == json.dumps("é", ensure_ascii=False)


@pytest.mark.parametrize("name", hostile_templates.HOSTILE)
def test_a_template_without_end_is_stopped(name: str) -> None:
    with pytest.raises((CorruptError, ConfigError)) as refusal:
        ChatTemplate(hostile_templates.HOSTILE[name]).render([{"role": "user", "content": "q"}])
    if name not in ("a range", "a million loops"):  # Jinja and Python refuse these by themselves
        assert "was stopped" in refusal.value.message


def test_the_limits_hold_in_any_thread_and_leave_other_renderings_alone() -> None:
    sound, hostile = ChatTemplate(CHATML), ChatTemplate(hostile_templates.HOSTILE["doubled by tilde"])
    messages = [{"role": "user", "content": "q"}]

    def render(number: int) -> str:
        try:
            return (hostile if number % 2 else sound).render(messages)
        except CorruptError as error:
            return error.message

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(render, range(40)))
    assert set(found[::2]) == {sound.render(messages)}
    assert all("too much text" in text for text in found[1::2])


@pytest.mark.parametrize("name", hostile_templates.REAL)
@pytest.mark.parametrize("prompt", [False, True])
def test_templates_of_real_families_render_as_in_transformers(name: str, prompt: bool) -> None:
    tokenizer, source = tiny.tokenizer(), hostile_templates.REAL[name]
    ours = ChatTemplate(source, tokenizer.bos_token, tokenizer.eos_token)
    for messages in conversations():
        if not messages:
            continue
        try:
            theirs = tokenizer.apply_chat_template(
                messages, chat_template=source, add_generation_prompt=prompt, tokenize=False
            )
        except (TemplateError, TypeError, KeyError):
            with pytest.raises(ConfigError, match="refused"):
                ours.render(messages, add_generation_prompt=prompt)
        else:
            assert ours.render(messages, add_generation_prompt=prompt) == theirs


@pytest.mark.parametrize("name", [*hostile_templates.REAL, "chatml"])
def test_a_conversation_as_long_as_any_context_renders(name: str) -> None:
    source = hostile_templates.REAL.get(name, CHATML)
    turns = [
        {"role": "assistant" if n % 2 else "user", "content": "<think>so</think> it is. " * 100}
        for n in range(801)
    ]
    assert len(ChatTemplate(source, "<s>", "</s>").render(turns, add_generation_prompt=True)) > 500_000


def test_fields_that_are_none_are_left_out_as_in_transformers() -> None:
    source = "{{ messages[0].name is defined }}{{ tools is none }}{{ bos_token is defined }}"
    assert ChatTemplate(source).render([{"role": "user", "name": None}]) == "FalseTrueFalse"  # type: ignore[dict-item]
