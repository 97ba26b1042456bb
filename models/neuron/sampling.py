"""How the cores draw each slot's tokens: what transformers-neuronx calls dynamic, per-line on-device generation.

Pure: keeps one setting a slot and spells them as the keywords of its GenerationConfig. Knows no library and no device.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.backend import StepError
from models.protocol import SamplingParams

# Built into the graphs: no draw looks further than the most likely 256 tokens. AWS's and vLLM's choice.
GLOBAL_TOP_K = 256


@dataclass(frozen=True, slots=True)
class _Setting:
    """One slot's numbers; these are greedy: a top-k of one leaves nothing to the draw."""

    top_k: int = 1
    top_p: float = 1.0
    temperature: float = 1.0


class SlotSampling:
    """The settings of all slots; greedy until they are set."""

    def __init__(self, slots: int, vocab_size: int) -> None:
        self._settings = [_Setting()] * slots
        self._most = min(GLOBAL_TOP_K, vocab_size)

    def put(self, slot: int, sampling: SamplingParams) -> bool:
        """Whether that changes the slot's setting. StepError for a slot that does not exist."""
        if not 0 <= slot < len(self._settings):
            raise StepError(f"slot {slot} does not exist: the slots are 0 to {len(self._settings) - 1}")
        setting = self._setting(sampling)
        changed = setting != self._settings[slot]
        self._settings[slot] = setting
        return changed

    def fields(self) -> dict[str, object]:
        """The keywords of a GenerationConfig. New lists each time: the library changes the object that it is given."""
        return {
            "do_sample": True,
            "dynamic": True,
            "per_batch_line": True,
            "global_top_k": self._most,
            "top_k": [setting.top_k for setting in self._settings],
            "top_p": [setting.top_p for setting in self._settings],
            "temperature": [setting.temperature for setting in self._settings],
            "top_p_min_tokens": [1] * len(self._settings),
        }

    def _setting(self, sampling: SamplingParams) -> _Setting:
        if not sampling.do_sample:
            return _Setting()
        return _Setting(min(sampling.top_k or self._most, self._most), sampling.top_p, sampling.temperature)
