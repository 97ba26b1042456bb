"""The verdict before a load: what is refused, with which numbers, and what would fit instead."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest
from msgspec.structs import replace

from models.planner import fitting, host_memory, refusal, residents_refusal
from models.planner.hardware import GIB, INSTANCES
from models.planner.memory import core_memory
from models.planner.nearest import changes, nearest
from models.protocol import CpuOptions, NeuronOptions, SimulatedOptions
from models.spec import ModelSpec

Specs = Mapping[str, ModelSpec]
XLARGE = INSTANCES[0].host_free_bytes


class TestNeuron:
    def test_what_fits_is_not_refused(self, specs: Specs) -> None:
        assert refusal(specs["llama3"], NeuronOptions(), XLARGE) is None

    def test_too_many_slots_are_refused_with_the_numbers_and_what_fits(self, specs: Specs) -> None:
        assert refusal(specs["llama3"], NeuronOptions(slots=32), XLARGE) == (
            "the model takes 18.7 GiB of the 15.97 of each of its 2 NeuronCores: 7.0 for weights, 8.0 for the KV cache "
            "of 32 slots x 4096 positions, 3.8 for 5 graphs and the runtime. It fits with slots = 16 (14.7 GiB a "
            "core), or with n_positions = 2048, token_buckets = [1024, 2048] (14.7 GiB a core)"
        )

    def test_codellama_with_the_slots_of_llama_3_needs_half_of_them_or_int8(self, specs: Specs) -> None:
        text = refusal(specs["codellama"], NeuronOptions(slots=8), XLARGE) or ""
        assert "slots = 4 (13.9 GiB a core)" in text
        assert 'quant = "s8"' not in text  # it would fit, but tightly, and there is something better

    def test_bf16_on_one_core_needs_the_other_one(self, specs: Specs) -> None:
        text = refusal(specs["llama3"], NeuronOptions(tp_degree=1), XLARGE) or ""
        assert "of the 15.97 of its NeuronCore" in text
        assert text.endswith("It fits with tp_degree = 2 (12.7 GiB a core)")

    def test_a_model_with_a_core_of_its_own_is_not_offered_the_other(self, specs: Specs) -> None:
        text = refusal(specs["llama3"], NeuronOptions(tp_degree=1, cores="0"), XLARGE) or ""
        assert "tp_degree" not in text
        assert 'quant = "s8"' in text

    def test_where_nothing_near_fits_more_chips_are_named(self, specs: Specs) -> None:
        seventy = dataclasses.replace(specs["llama3"], hidden_size=8192, intermediate_size=28672, layers=80, heads=64)
        text = refusal(seventy, NeuronOptions(), XLARGE) or ""
        assert "It fits with tp_degree = 24" in text

    def test_a_host_too_small_to_load_is_refused(self, specs: Specs) -> None:
        text = refusal(specs["llama3"], NeuronOptions(), 5 * GIB) or ""
        assert text.startswith("loading the model takes 6.3 GiB of the host, and 5.0 are free")
        assert "inf2.8xlarge" in text


class TestWhatIsNear:
    @pytest.mark.parametrize("family", ["llama3", "mistral", "codellama"])
    @pytest.mark.parametrize("slots", [32, 128])
    @pytest.mark.parametrize("n_positions", [4096, 8192])
    def test_every_configuration_that_is_named_fits_with_room_to_spare(
        self, specs: Specs, family: str, slots: int, n_positions: int
    ) -> None:
        spec = specs[family]
        asked = NeuronOptions(slots=slots, n_positions=n_positions, token_buckets=(1024, n_positions))
        found = fitting(spec, asked)
        assert found
        for options in found:
            assert core_memory(spec, options).fits
            assert not core_memory(spec, options).tight
            assert options.token_buckets[-1] == options.n_positions
            assert options.context_buckets[-1] <= options.n_positions
            assert refusal(spec, options, XLARGE) is None

    def test_no_more_is_given_up_than_needed(self, specs: Specs) -> None:
        spec, asked = specs["llama3"], NeuronOptions(slots=32)
        fewer, shorter = fitting(spec, asked)
        assert core_memory(spec, replace(fewer, slots=fewer.slots + 1)).tight
        longer = shorter.n_positions + 256
        assert core_memory(spec, replace(shorter, n_positions=longer, token_buckets=(1024, longer))).tight

    def test_a_tight_fit_is_named_where_there_is_no_better(self, specs: Specs) -> None:
        asked = NeuronOptions(slots=1, tp_degree=1, cores="0", context_buckets=(256,), token_buckets=(256,))
        twice = dataclasses.replace(specs["codellama"], layers=58)
        found = fitting(twice, replace(asked, n_positions=256))
        assert [changes(asked, options) for options in found] == ['n_positions = 256, quant = "s8"']
        assert core_memory(twice, found[0]).tight

    def test_of_single_changes_each_that_suffices_is_named_and_no_double_one(self) -> None:
        asked = NeuronOptions(slots=4, n_positions=1024, token_buckets=(1024,), context_buckets=(256, 1024))
        found = nearest(asked, lambda options: options.slots <= 2 or options.n_positions <= 600)
        assert [changes(asked, options) for options in found] == [
            "slots = 2",
            "n_positions = 512, context_buckets = [256], token_buckets = [512]",
        ]

    def test_where_no_single_change_suffices_the_smaller_type_comes_with_another(self) -> None:
        asked = NeuronOptions(slots=4)
        found = nearest(asked, lambda options: options.quant == "s8" and options.slots <= 2)
        assert [changes(asked, options) for options in found] == ['slots = 2, quant = "s8"']


class TestCpu:
    def test_what_fits_is_not_refused(self, specs: Specs) -> None:
        assert refusal(specs["llama3"], CpuOptions(dtype="bfloat16"), 32 * GIB) is None

    def test_what_does_not_is_refused_with_the_numbers_and_what_fits(self, specs: Specs) -> None:
        assert refusal(specs["llama3"], CpuOptions(), 26 * GIB) == (
            "the model takes 34.2 GiB of the host, and 26.0 are free: 29.9 for weights (float32), 4.0 for the KV cache "
            'of 8 slots x 2048 positions, the rest for the worker and its loading. It fits with dtype = "bfloat16" '
            "(18.1 GiB)"
        )

    def test_where_nothing_fits_it_says_so(self, specs: Specs) -> None:
        text = refusal(specs["llama3"], CpuOptions(), 8 * GIB) or ""
        assert text.endswith("No smaller configuration of this model fits either")

    def test_a_shorter_slot_takes_its_chunk_along(self, specs: Specs) -> None:
        asked = CpuOptions(slots=1, n_positions=8192, chunk=4096, dtype="bfloat16")
        found = nearest(asked, lambda options: options.n_positions <= 2048)
        assert [changes(asked, options) for options in found] == ["n_positions = 2048, chunk = 2048"]


def test_a_simulated_device_always_fits(specs: Specs) -> None:
    assert refusal(specs["llama3"], SimulatedOptions(), 0) is None
    assert host_memory(specs["llama3"], SimulatedOptions()).peak == 0


class TestResidents:
    LLAMA = NeuronOptions(tp_degree=1, quant="s8", slots=6)
    MISTRAL = NeuronOptions(tp_degree=1, quant="s8", slots=8)

    def test_two_int8_models_fit_a_core_each(self, specs: Specs) -> None:
        both = [(specs["llama3"], self.LLAMA), (specs["mistral"], self.MISTRAL)]
        assert residents_refusal(both, 2, XLARGE) is None

    def test_two_bf16_models_do_not(self, specs: Specs) -> None:
        both = [(specs["llama3"], replace(self.LLAMA, quant="none")), (specs["mistral"], self.MISTRAL)]
        assert (residents_refusal(both, 2, XLARGE) or "").startswith("the model takes 20.2 GiB")

    def test_three_do_not_fit_two_cores(self, specs: Specs) -> None:
        three = [(specs[family], self.LLAMA) for family in ("llama3", "mistral", "mistral")]
        assert residents_refusal(three, 2, XLARGE) == "together they take 3 NeuronCores, and there are 2"

    @pytest.mark.parametrize(("cores", "shared"), [(("0", "0"), 0), (("0-1", "1"), 1)])
    def test_two_do_not_fit_the_same_core(self, specs: Specs, cores: tuple[str, str], shared: int) -> None:
        both = [(specs["mistral"], replace(self.MISTRAL, cores=each)) for each in cores]
        assert residents_refusal(both, 2, XLARGE) == f"more than one of them is given core {shared}"

    def test_the_host_must_hold_one_and_load_the_other(self, specs: Specs) -> None:
        both = [(specs["llama3"], self.LLAMA), (specs["mistral"], self.MISTRAL)]
        kept = sum(host_memory(*each).resident for each in both)
        loading = max(host_memory(*each).peak - host_memory(*each).resident for each in both)
        assert residents_refusal(both, 2, kept + loading) is None
        assert "of the host while the last one loads" in (residents_refusal(both, 2, kept + loading - 1) or "")
