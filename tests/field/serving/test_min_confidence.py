"""A server that refuses: answers are given whole or not at all, and say how sure the model is and whether the request is in scope."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from field.serving.scripted import NO_TLS, Running, Sure

from edgekit.device.confidence import Refusal

NOTHING = {"confidence": None, "abstained": True, "in_scope": None}


@pytest.fixture
def asked(start: Any) -> Running:
    found: Running = start(Sure().loaded(Refusal(0.8)))
    return found


def answer(response: httpx.Response) -> tuple[str, str, Any]:
    document = response.json()
    (choice,) = document["choices"]
    return choice["message"]["content"], choice["finish_reason"], document.get("edgekit")


def test_an_answer_comes_with_its_confidence_or_not_at_all(asked: Running) -> None:
    text, finish, told = answer(asked.ask("please open"))
    assert (text, finish, told["abstained"]) == ("open", "stop", False) and 0.9 < told["confidence"] < 1
    text, finish, told = answer(asked.ask("perhaps open"))
    assert (text, finish, told["abstained"]) == ("", "stop", True)
    assert told["confidence"] == pytest.approx(1 / 4)
    assert answer(asked.ask("please dance")) == ("", "stop", NOTHING)


def test_an_answer_that_was_cut_is_not_taken_for_a_shorter_label(asked: Running) -> None:
    assert answer(asked.ask("do open_all", max_tokens=4)) == (
        "",
        "length",
        NOTHING,
    )
    assert answer(asked.ask("do open_all", stop=["_"]))[0] == ""  # "open" is not what it is sure of
    assert answer(asked.ask("do open_all"))[0] == "open_all"


def test_a_stream_waits_for_the_confidence_and_ends_with_it(asked: Running) -> None:
    def chunks(text: str) -> list[Any]:
        events = asked.ask(text, stream=True, stream_options={"include_usage": True}).text.split("\n\n")
        assert events[-2] == "data: [DONE]"
        return [json.loads(event[6:]) for event in events[:-2]]

    given, last, usage = chunks("please open")
    assert given["choices"][0]["delta"] == {"role": "assistant", "content": "open"} and "edgekit" not in given
    assert last["choices"][0]["finish_reason"] == "stop" and last["edgekit"]["abstained"] is False
    assert usage["usage"]["completion_tokens"] == 4 and "edgekit" not in usage
    last, _ = chunks("perhaps open")
    assert (
        last["choices"][0]["delta"] == {"role": "assistant", "content": ""} and last["edgekit"]["abstained"]
    )


def test_openais_client_passes_it_on(asked: Running) -> None:
    http = httpx.Client(trust_env=False, verify=NO_TLS)
    client = openai.OpenAI(base_url=f"{asked.url}/v1", api_key="none", max_retries=0, http_client=http)
    found = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "perhaps open"}]
    )
    assert found.choices[0].message.content == "" and found.choices[0].message.refusal is None
    assert found.model_extra and found.model_extra["edgekit"]["abstained"] is True
    text = client.completions.create(model="tiny", prompt="please open")
    assert (
        text.choices[0].text == "open" and text.model_extra and not text.model_extra["edgekit"]["abstained"]
    )


def test_the_lowest_of_zero_withholds_nothing_and_without_one_nothing_is_told(start: Any) -> None:
    running = start(Sure().loaded(Refusal()))
    assert answer(running.ask("please dance")) == ("dance", "stop", NOTHING | {"abstained": False})
    assert answer(running.ask("perhaps open"))[2]["confidence"] == pytest.approx(1 / 4)
    assert answer(start(Sure().loaded()).ask("please open")) == ("open", "stop", None)


def test_a_request_out_of_scope_gets_no_answer(start: Any) -> None:
    running = start(Sure().loaded(Refusal(out_of_scope=True)))
    text, finish, told = answer(running.ask("please open"))
    assert (text, finish) == ("open", "stop") and told["confidence"] > 0.9
    assert (told["abstained"], told["in_scope"]) == (False, True)
    for question in ("please dance", "perhaps open", "please beyond"):
        text, finish, told = answer(running.ask(question))
        assert (text, finish, told["abstained"], told["in_scope"]) == ("", "stop", True, False)
    # what was cut is given as without the switch: the request is in scope
    assert answer(running.ask("do open_all", max_tokens=4)) == (
        "open",
        "length",
        {"confidence": None, "abstained": False, "in_scope": True},
    )
    assert running.runtime.scored == 5  # once for each answer


def test_both_refusals_go_together(start: Any) -> None:
    running = start(Sure().loaded(Refusal(0.8, True)))
    assert answer(running.ask("please open"))[0] == "open"
    assert answer(running.ask("please dance"))[2] == NOTHING | {"in_scope": False}
    cut = answer(running.ask("do open_all", max_tokens=4))
    assert cut == ("", "length", NOTHING | {"in_scope": True})


def test_with_an_adapter_in_use_nothing_is_answered(start: Any) -> None:
    """The temperature of the bundle's own model says nothing about an adapter's answers."""
    model = Sure().loaded(Refusal(0.8))
    model.adapter = Path("other.gguf")
    running = start(model)
    refused = running.ask("please open")
    assert refused.status_code == 400 and "without the adapter other.gguf" in refused.text
    assert running.runtime.made == 0
