"""Floors and expectations of steps, prefills and loads; the numbers are those of the reference and their sources."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from models.planner.timing import Seconds, decode_step, load, prefill
from models.protocol import NeuronOptions
from models.spec import ModelSpec, spec_of

Specs = Mapping[str, ModelSpec]


def ms(seconds: float) -> float:
    return seconds * 1e3


class TestTheFloorOfADecodeStep:
    @pytest.mark.parametrize(
        ("family", "quant", "expected"),
        [
            ("llama3", "none", 18.3),
            ("llama3", "s8", 9.8),
            ("mistral", "none", 17.3),
            ("mistral", "s8", 8.8),
            ("codellama", "none", 16.1),
            ("codellama", "s8", 8.2),
        ],
    )
    def test_is_one_read_of_the_weights(self, specs: Specs, family: str, quant: str, expected: float) -> None:
        almost_no_cache = NeuronOptions(slots=1, quant=quant)
        assert ms(decode_step(specs[family], almost_no_cache, 1).floor) == pytest.approx(expected, abs=0.06)

    @pytest.mark.parametrize(("family", "expected"), [("llama3", 0.164), ("mistral", 0.164), ("codellama", 0.655)])
    def test_and_of_the_cache_of_every_slot(self, specs: Specs, family: str, expected: float) -> None:
        one, two = (decode_step(specs[family], NeuronOptions(slots=slots), 1024).floor for slots in (1, 2))
        assert ms(two - one) == pytest.approx(expected, abs=0.0006)

    @pytest.mark.parametrize(
        ("family", "slots", "bucket", "expected", "tokens_per_s"),
        [
            ("llama3", 8, 1024, 19.6, 408),
            ("llama3", 8, 4096, 23.5, 340),
            ("llama3", 16, 4096, 28.8, 556),
            ("codellama", 4, 4096, 26.6, 150),
        ],
    )
    def test_bounds_the_tokens_of_all_slots(
        self, specs: Specs, family: str, slots: int, bucket: int, expected: float, tokens_per_s: float
    ) -> None:
        floor = decode_step(specs[family], NeuronOptions(slots=slots), bucket).floor
        assert ms(floor) == pytest.approx(expected, abs=0.06)
        assert slots / floor == pytest.approx(tokens_per_s, abs=1)

    @pytest.mark.parametrize(
        ("tp_degree", "expected"),
        [
            (1, 15.01e9 / 410e6),
            (2, 15.01e9 / 820e6),
            (8, 15.01e9 / (4 * 820e6)),
            # Padded to 36 query heads, with 36 KV heads for 8: 17.16 GB in all.
            (12, 17.16e9 / (6 * 820e6)),
            # 48 query and 24 KV heads: 17.17 GB.
            (24, 17.17e9 / (12 * 820e6)),
        ],
    )
    def test_falls_with_the_cores_but_for_padding(self, specs: Specs, tp_degree: int, expected: float) -> None:
        floor = decode_step(specs["llama3"], NeuronOptions(slots=1, tp_degree=tp_degree), 1).floor
        assert ms(floor) == pytest.approx(expected, rel=0.002)

    def test_of_int8_on_one_core_is_about_that_of_bf16_on_two(self, specs: Specs) -> None:
        one_core = decode_step(specs["llama3"], NeuronOptions(slots=1, quant="s8", tp_degree=1), 1).floor
        assert ms(one_core) == pytest.approx(2 * 9.79, abs=0.05)


class TestTheFloorOfAPrefill:
    @pytest.mark.parametrize(("bucket", "expected"), [(512, 38), (2048, 162), (4096, 347), (8192, 787)])
    def test_is_the_work_of_the_whole_bucket(self, specs: Specs, bucket: int, expected: float) -> None:
        assert ms(prefill(specs["llama3"], NeuronOptions(), bucket).floor) == pytest.approx(expected, abs=0.6)

    def test_of_a_short_bucket_is_one_read_of_the_weights(self, specs: Specs) -> None:
        assert ms(prefill(specs["llama3"], NeuronOptions(), 64).floor) == pytest.approx(18.3, abs=0.05)

    def test_does_not_depend_on_the_slots(self, specs: Specs) -> None:
        few, many = (prefill(specs["llama3"], NeuronOptions(slots=slots), 1024) for slots in (1, 16))
        assert few == many


class TestWhatIsExpected:
    def test_llama_3_at_8_slots_takes_25_to_70_ms_a_step(self, specs: Specs) -> None:
        step = decode_step(specs["llama3"], NeuronOptions(slots=8), 1024)
        assert 25 < ms(step.optimistic) < 28
        assert 60 < ms(step.pessimistic) < 70

    def test_the_published_measurement_on_two_cores_is_the_pessimistic_end(self) -> None:
        """Llama-2-7B, one slot of 2048: 61 ms a token, and 0.3 s to the first after 256 tokens."""
        llama_2 = spec_of(
            {
                "model_type": "llama",
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "vocab_size": 32000,
                "max_position_embeddings": 4096,
            }
        )
        options = NeuronOptions(slots=1, n_positions=2048)
        assert ms(decode_step(llama_2, options, 2048).pessimistic) == pytest.approx(61, abs=0.5)
        assert [prefill(llama_2, options, bucket).pessimistic for bucket in (256, 512, 768)] == pytest.approx(
            [0.3, 0.4, 0.5]
        )

    def test_int8_keeps_the_measured_overhead_at_worst(self, specs: Specs) -> None:
        step = decode_step(specs["llama3"], NeuronOptions(slots=8, quant="s8"), 1024)
        assert ms(step.pessimistic - step.floor) == pytest.approx(43.6)

    @pytest.mark.parametrize("tp_degree", [1, 2, 8, 12, 24])
    @pytest.mark.parametrize("quant", ["none", "s8"])
    def test_no_expectation_is_below_a_floor(self, specs: Specs, tp_degree: int, quant: str) -> None:
        for spec in specs.values():
            options = NeuronOptions(tp_degree=tp_degree, quant=quant)
            for times in (decode_step(spec, options, 1024), prefill(spec, options, 256), load(spec, 250e6)):
                assert 0 < times.floor <= times.optimistic < times.pessimistic


class TestALoad:
    def test_llama_3_from_a_gp3_volume_takes_64_to_128_s_to_read(self, specs: Specs) -> None:
        assert [load(specs["llama3"], rate).floor for rate in (250e6, 125e6)] == pytest.approx([64.2, 128.5], abs=0.1)

    def test_a_fast_disk_leaves_what_is_not_reading(self, specs: Specs) -> None:
        assert load(specs["llama3"], 1e12) == Seconds(
            floor=pytest.approx(0.016, abs=0.001), optimistic=45.0, pessimistic=pytest.approx(120, abs=0.1)
        )
