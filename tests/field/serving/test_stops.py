"""Stop strings, whatever pieces they come in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgekit.field.serving.stops import StopStrings

WORDS = st.text("ab\n", max_size=24)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


@given(WORDS, STOPS, st.integers(1, 5))
def test_the_text_ends_before_the_first_stop_however_it_is_cut(
    text: str, stops: list[str], size: int
) -> None:
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    expected = text[: min(places)] if places else text
    found = StopStrings(stops)
    shown = ""
    for begin in range(0, len(text), size):
        shown += found.feed(text[begin : begin + size])
        # a stop that is whole ends the answer, and may come before one that began earlier and is not whole yet
        if found.found:
            break
    else:
        shown += found.rest()
    assert found.found == bool(places)
    if size >= len(text) or len(set(map(len, stops))) <= 1:
        assert shown == expected
    assert text.startswith(shown) and not any(stop in shown for stop in stops)


def test_what_cannot_be_a_stop_is_shown_at_once() -> None:
    stops = StopStrings(["</end>"])
    assert stops.feed("abc</e") == "abc"
    assert stops.feed("xyz") == "</exyz"
    assert stops.feed("<") == "" and stops.rest() == "<" and not stops.found
