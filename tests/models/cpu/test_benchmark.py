"""What the CPU benchmark computes from its step times."""

from __future__ import annotations

from models.cpu.benchmark import Row, implied_tokens_per_s


def test_prefills_come_by_length_and_give_the_first_token() -> None:
    row = Row("any", step_s=(0.1, 0.2, 0.3, 0.4, 0.5), feed_s=0.5)

    assert implied_tokens_per_s(row, streams=4, new_tokens=11) == 4 * 11 / (4 * 0.5 + 10 * 0.2)
