"""What all HTTP clients of edgekit share: they follow no redirect, and try again after the same status codes."""

from __future__ import annotations

from typing import Any
from urllib.request import HTTPRedirectHandler

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # status codes after which a retry may succeed


class NoRedirect(HTTPRedirectHandler):
    """Sends to the named address only: a token or a document goes to no other one. A redirect counts as a failure."""

    def redirect_request(self, *what: Any) -> None:
        """Follow none."""
        return
