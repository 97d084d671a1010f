"""What was read of a source is held against the source itself."""

from pathlib import Path

import pytest

from edgekit.base.cache import Cache
from edgekit.base.errors import StageError
from edgekit.base.events import ignore
from edgekit.models import gguf_source
from edgekit.models.source import resolve
from edgekit.proof.source import bring_in


def test_a_tokenizer_read_wrongly_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own reader drops the splitting of digits, and nothing else complains."""
    monkeypatch.setattr(gguf_source, "mend_pre_tokenizer", lambda tokenizer, path: None)
    with pytest.raises(StageError, match=r"source\.tokenizer_identity"):
        bring_in(Cache(tmp_path, ignore), resolve("smollm2-135m"))
