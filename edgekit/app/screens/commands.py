"""Everything that the keys do, in one list that is searched and run: `?` and ctrl+p open it."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from functools import partial
from typing import Any

from textual.command import DiscoveryHit, Hit, Hits, Provider

from edgekit.app.screens.base import NAMES

TEXTS = {  # what a screen is for, beside its key
    "build": "Build: from a model and rows to a bundle, step by step",
    "run": "Run: watch the build under way",
    "results": "Results: what was built, and how it differs",
    "monitor": "Monitor: every device, worst first",
    "incident": "Incident: what is wrong, since when, and what to do",
}


class Keys(Provider):
    """The bindings of the screen that is shown, and the screens."""

    def _entries(self) -> Iterator[tuple[str, str, partial[Coroutine[Any, Any, bool]]]]:
        seen = set()
        for node, binding, enabled, tooltip in self.screen.active_bindings.values():
            named = enabled and binding.id and binding.description  # ours; Textual's own have no id
            if (
                named
                and not binding.action.startswith(("go(", "command_palette"))
                and binding.action not in seen
            ):
                seen.add(binding.action)
                key = self.app.get_key_display(binding)
                run = partial(self.app.run_action, binding.action, node)
                yield f"{binding.description}  ({key})", tooltip or binding.tooltip or "", run
        for number, name in enumerate(NAMES, 1):
            yield f"{TEXTS[name]}  ({number})", "", partial(self.app.run_action, f"go('{name}')")

    async def discover(self) -> Hits:
        """All of them."""
        for text, more, run in self._entries():
            yield DiscoveryHit(text, run, help=more or None)

    async def search(self, query: str) -> Hits:
        """Those that match."""
        matcher = self.matcher(query)
        for text, more, run in self._entries():
            score = max(matcher.match(text), matcher.match(more) if more else 0)
            if score > 0:
                yield Hit(score, matcher.highlight(text), run, help=more or None)
