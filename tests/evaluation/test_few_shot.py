"""Few-shot prompts: the task is told, examples are shown, and never the row's own answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fake_runtime import CHATML, FakeRuntime

from edgekit.base.events import ignore
from edgekit.data.rows import Row
from edgekit.evaluation.accuracy import evaluate
from edgekit.evaluation.few_shot import MOST_ROWS, describe, prepare, sample
from edgekit.models.chat import ChatTemplate


def row(number: int, label: str, system: str = "Be terse.") -> Row:
    answer = json.dumps({"intent": label, "number": number})
    messages = [("system", system), ("user", f"question {number}"), ("assistant", answer)]
    return Row(str(number), tuple({"role": role, "content": text} for role, text in messages), label)


class Knowing(FakeRuntime):
    """Answers the last question that it is asked."""

    def generate_batch(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        asked = [self.decode(prompt).split("question ")[-1].split("\n")[0] for prompt in prompts]
        return [self.encode(row(int(number), "abc"[int(number) % 3]).answer) for number in asked]


TRAIN = [row(number, "abc"[number % 3]) for number in range(60)]
TEST = [row(number, "abc"[number % 3]) for number in range(100, 300)]


def test_the_task_names_the_form_the_keys_and_the_labels_of_the_answers() -> None:
    task = describe(TRAIN)
    assert "keys among: intent, number." in task and "kinds: a, b, c." in task
    plain = [Row("1", ({"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}))]
    assert "JSON" not in describe(plain) and "kinds" not in describe(plain)


def test_examples_of_every_label_stand_before_the_row_and_its_answer_does_not() -> None:
    runtime = FakeRuntime()
    shots = prepare(runtime, TRAIN, TEST, 16)
    assert len(shots.examples) == 8 and shots == prepare(runtime, TRAIN, TEST, 16)
    assert {example.label for example in shots.examples[:3]} == {"a", "b", "c"}
    prompt = shots.render(TEST[0], runtime.chat_template)
    assert prompt.count("<|im_start|>assistant") == 9 and prompt.count("<|im_start|>system") == 1
    assert "Be terse." in prompt and all(example.answer in prompt for example in shots.examples)
    assert TEST[0].answer not in prompt and prompt.endswith("question 100<|im_end|>\n<|im_start|>assistant\n")


def test_only_as_many_examples_are_shown_as_fit_the_context() -> None:
    long = [Row(r.id, ({"role": "user", "content": "x" * 500}, r.messages[-1]), r.label) for r in TRAIN]
    shots = prepare(FakeRuntime(), long, TEST, 64)
    longest = max(len(FakeRuntime().encode(shots.render(r, FakeRuntime().chat_template))) for r in TEST[:20])
    assert 0 < len(shots.examples) < 8 and longest + 64 <= 2048
    enormous = [Row(r.id, ({"role": "user", "content": "x" * 5000}, r.messages[-1])) for r in TRAIN]
    assert prepare(FakeRuntime(), enormous, TEST, 64).examples == ()


def test_a_template_without_a_system_role_gets_the_task_in_the_first_question() -> None:
    strict = "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
    template = ChatTemplate(strict + CHATML, "<|im_start|>", "<|im_end|>")
    prompt = prepare(FakeRuntime(), TRAIN, TEST, 16).render(TEST[0], template)
    assert prompt.count("Answer the last message in exactly the form") == 1
    assert prompt.index("Answer the last message") < prompt.index("question")


def test_the_rows_asked_are_a_fixed_sample_in_their_order() -> None:
    assert sample(TEST[:MOST_ROWS]) == TEST[:MOST_ROWS]
    chosen = sample(TEST)
    assert len(chosen) == MOST_ROWS and chosen == sample(TEST)
    assert [int(r.id) for r in chosen] == sorted(int(r.id) for r in chosen)


def test_the_number_of_examples_is_in_the_result_and_the_prompt_in_the_log(tmp_path: Path) -> None:
    runtime = Knowing()
    shots = prepare(runtime, TRAIN, TEST[:4], 16)
    log = tmp_path / "log.jsonl"
    found = evaluate(
        runtime, TEST[:4], max_tokens=64, log=log, emit=ignore, stage="eval.base_few_shot", shots=shots
    )
    assert (found["accuracy"], found["n"], found["shots"]) == (1.0, 4, 8)
    assert TRAIN[0].messages[0]["content"] in json.loads(log.read_text().split("\n")[0])["prompt"]


def test_nothing_is_added_where_not_even_the_task_fits() -> None:
    shots = prepare(FakeRuntime(), TRAIN, TEST, 16, context=120)
    assert shots.examples == () and shots.render(TEST[0], FakeRuntime().chat_template).count("question") == 1
    assert "Answer the last message" not in shots.render(TEST[0], FakeRuntime().chat_template)
