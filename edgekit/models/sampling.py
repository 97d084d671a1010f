"""How the next token is chosen from a model's logits."""

from __future__ import annotations

from dataclasses import dataclass

# Below it only tokens whose logits differ by less than 0.0001 would share the choice.
LOWEST_TEMPERATURE = 1e-5


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: the most likely one where `greedy`, else by seeded sampling."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    @property
    def greedy(self) -> bool:
        """Whether the temperature is 0, or so low that logits divided by it would exceed float32 and become NaN."""
        return self.temperature < LOWEST_TEMPERATURE
