"""Chat templates: byte for byte as transformers renders them, and never free to run code."""

import json

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.base.errors import ConfigError
from edgekit.models.chat import ChatTemplate

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
