"""Memory of cores and host: every cell of the reference's table, the published dumps, and what each knob costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from msgspec.structs import replace

from models.planner.hardware import CORE_BYTES, GIB
from models.planner.memory import CoreMemory, core_memory, cpu_host_memory, neuron_host_memory, runtime_bytes
from models.protocol import CpuOptions, NeuronOptions
from models.spec import ModelSpec, read_spec, spec_of

Specs = Mapping[str, ModelSpec]

SLOTS = (1, 4, 8, 16, 32)
# Weights and KV cache of the whole chip in GiB, (bf16, int8) for each of SLOTS; None: does not fit. Where the table of
# the reference gives a figure for what does not fit, test_what_does_not_fit_is_this_large has it.
CHIP: dict[tuple[str, int], tuple[tuple[float | None, float | None], ...]] = {
    ("llama3", 2048): ((14.2, 7.7), (15.0, 8.5), (16.0, 9.5), (18.0, 11.5), (22.0, 15.5)),
    ("llama3", 4096): ((14.5, 8.0), (16.0, 9.5), (18.0, 11.5), (22.0, 15.5), (None, 23.5)),
    ("llama3", 8192): ((15.0, 8.5), (18.0, 11.5), (22.0, 15.5), (None, 23.5), (None, None)),
    ("mistral", 2048): ((13.5, 7.0), (14.2, 7.7), (15.2, 8.7), (17.2, 10.7), (21.2, 14.7)),
    ("mistral", 4096): ((13.7, 7.2), (15.2, 8.7), (17.2, 10.7), (21.2, 14.7), (None, 22.7)),
    ("mistral", 8192): ((14.2, 7.7), (17.2, 10.7), (21.2, 14.7), (None, 22.7), (None, None)),
    ("codellama", 2048): ((13.3, 7.3), (16.3, 10.3), (20.3, 14.3), (None, 22.3), (None, None)),
    ("codellama", 4096): ((14.3, 8.3), (20.3, 14.3), (None, 22.3), (None, None), (None, None)),
    ("codellama", 8192): ((16.3, 10.3), (None, 22.3), (None, None), (None, None), (None, None)),
}
CELLS = [
    (family, n_positions, slots, quant, expected)
    for (family, n_positions), row in CHIP.items()
    for slots, cell in zip(SLOTS, row, strict=True)
    for quant, expected in zip(("none", "s8"), cell, strict=True)
]


def options(slots: int, n_positions: int, **others: object) -> NeuronOptions:
    """The buckets that are the default, cut to the length."""
    contexts = tuple(bucket for bucket in (256, 1024, 2048) if bucket <= n_positions)
    base = NeuronOptions(
        slots=slots, n_positions=n_positions, context_buckets=contexts, token_buckets=(1024, n_positions)
    )
    return replace(base, **others)


def chip_gib(memory: CoreMemory) -> float:
    return 2 * memory.tensors / GIB


@pytest.mark.parametrize(("family", "n_positions", "slots", "quant", "expected"), CELLS)
def test_weights_and_cache_of_the_chip(
    specs: Specs, family: str, n_positions: int, slots: int, quant: str, expected: float | None
) -> None:
    memory = core_memory(specs[family], options(slots, n_positions, quant=quant))
    assert memory.fits == (expected is not None)
    if expected is not None:
        assert chip_gib(memory) == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize(
    ("family", "n_positions", "slots", "quant", "expected"),
    [
        ("llama3", 4096, 32, "none", 30.0),
        ("llama3", 8192, 16, "none", 30.0),
        ("mistral", 4096, 32, "none", 29.2),
        ("mistral", 8192, 16, "none", 29.2),
        ("codellama", 2048, 16, "none", 28.3),
        ("codellama", 4096, 8, "none", 28.3),
        ("codellama", 8192, 4, "none", 28.3),
    ],
)
def test_what_does_not_fit_is_this_large(
    specs: Specs, family: str, n_positions: int, slots: int, quant: str, expected: float
) -> None:
    memory = core_memory(specs[family], options(slots, n_positions, quant=quant))
    assert chip_gib(memory) == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize(
    ("family", "quant", "expected"),
    [
        ("llama3", "none", 13.98),
        ("llama3", "s8", 7.48),
        ("mistral", "none", 13.25),
        ("mistral", "s8", 6.75),
        ("codellama", "none", 12.31),
        ("codellama", "s8", 6.28),
    ],
)
def test_weights_of_the_chip(specs: Specs, family: str, quant: str, expected: float) -> None:
    assert 2 * core_memory(specs[family], options(1, 2048, quant=quant)).weights / GIB == pytest.approx(
        expected, abs=0.006
    )


def test_what_fills_the_chip_up_to_22_gib_is_not_tight_and_more_is(specs: Specs) -> None:
    assert not core_memory(specs["llama3"], options(16, 4096)).tight
    assert core_memory(specs["llama3"], options(32, 4096, quant="s8")).tight


class TestAgainstPublishedDumps:
    def test_the_tensors_of_a_llama_2_7b_in_issue_49(self, specs: Specs) -> None:
        """Two cores, four slots of 2048: 8.216 GB of tensors on each."""
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
        assert core_memory(llama_2, options(4, 2048)).tensors / GIB == pytest.approx(8.15, abs=0.01)

    def test_the_runtime_of_issue_92_is_not_underestimated(self, specs: Specs) -> None:
        """One prefill and one decode graph: 1.47 + 0.48 + 0.50 + 0.37 GiB, and then it ran out of memory."""
        two_graphs = options(1, 2048, context_buckets=(2048,), token_buckets=(2048,))
        share = runtime_bytes(specs["llama3"], two_graphs)
        assert 2.82 <= share / GIB <= 3.5
        assert 13.17 * GIB + share > CORE_BYTES


class TestTheRuntimesShare:
    def test_two_to_four_graphs_take_3_to_3_and_a_half_gib(self, specs: Specs) -> None:
        for contexts, gib in (((256,), 3.0), ((256, 1024), 3.25), ((256, 1024, 2048), 3.5)):
            few = options(8, 4096, context_buckets=contexts, token_buckets=(4096,))
            assert runtime_bytes(specs["llama3"], few) / GIB == gib

    def test_every_bucket_costs(self, specs: Specs) -> None:
        shares = [
            runtime_bytes(specs["llama3"], options(8, 4096, token_buckets=buckets))
            for buckets in ((4096,), (1024, 4096), (1024, 2048, 4096))
        ]
        assert shares == sorted(set(shares))

    def test_a_long_prefill_keeps_its_scores_and_one_core_those_of_all_heads(self, specs: Specs) -> None:
        def share(longest: int, tp_degree: int) -> float:
            longer = options(8, 4096, context_buckets=(longest,), tp_degree=tp_degree)
            return runtime_bytes(specs["llama3"], longer) / GIB

        assert share(3072, 2) - share(2048, 2) == 0.0625
        assert share(3072, 1) - share(2048, 1) == 0.625

    def test_from_4096_on_there_are_no_scores(self, specs: Specs) -> None:
        long, short = (options(8, 4096, context_buckets=(bucket,)) for bucket in (4096, 256))
        assert runtime_bytes(specs["llama3"], long) == runtime_bytes(specs["llama3"], short)

    def test_one_core_needs_no_collectives(self, specs: Specs) -> None:
        one, two = (options(8, 4096, tp_degree=tp_degree) for tp_degree in (1, 2))
        assert runtime_bytes(specs["llama3"], two) - runtime_bytes(specs["llama3"], one) == GIB // 2


class TestTheHostOfANeuronWorker:
    def test_llama_3_loads_in_6_to_8_gb(self, specs: Specs) -> None:
        assert 6e9 < neuron_host_memory(specs["llama3"], NeuronOptions()).peak < 8e9

    def test_the_embedding_stays_in_float32(self, specs: Specs) -> None:
        spec = specs["llama3"]
        host = neuron_host_memory(spec, NeuronOptions())
        assert host.weights == 128256 * 4096 * 4
        assert host.resident - host.weights == 1_500_000_000

    @pytest.mark.parametrize("family", ["llama3", "mistral", "codellama"])
    def test_it_never_holds_half_the_checkpoint(self, specs: Specs, family: str) -> None:
        for quant in ("none", "s8"):
            host = neuron_host_memory(specs[family], NeuronOptions(quant=quant))
            assert host.resident < host.peak < specs[family].weight_bytes(2) / 2

    def test_quantising_takes_a_layer_in_float32(self, specs: Specs) -> None:
        whole, quantised = (
            neuron_host_memory(specs["mistral"], NeuronOptions(quant=quant)) for quant in ("none", "s8")
        )
        a_layer = 218_112_000
        assert quantised.peak - whole.peak == pytest.approx(4 * a_layer, rel=0.001)


class TestTheHostOfACpuWorker:
    def test_weights_and_cache_of_all_slots(self, specs: Specs) -> None:
        memory = cpu_host_memory(specs["llama3"], CpuOptions(slots=4, n_positions=2048, dtype="float32"))
        assert memory.weights == 8_030_261_248 * 4
        assert memory.kv == 4 * 2048 * 256 * 1024

    def test_bfloat16_halves_both(self, specs: Specs) -> None:
        full, half = (cpu_host_memory(specs["llama3"], CpuOptions(dtype=dtype)) for dtype in ("float32", "bfloat16"))
        assert (half.weights, half.kv) == (full.weights // 2, full.kv // 2)

    def test_float16_weights_halve_all_but_the_embedding_table(self, specs: Specs) -> None:
        full, half = (cpu_host_memory(specs["llama3"], CpuOptions(weights=kind)) for kind in ("dtype", "float16"))
        table = 128256 * 4096 * 4
        assert (half.weights - table, half.kv) == ((full.weights - table) // 2, full.kv)

    def test_a_tied_embedding_is_there_twice(self, tiny_checkpoint: Callable[..., Path]) -> None:
        tied = read_spec(tiny_checkpoint("llama3", tie_word_embeddings=True))
        apart = read_spec(tiny_checkpoint("llama3"))
        memory = [cpu_host_memory(spec, CpuOptions(n_positions=64)).weights for spec in (tied, apart)]
        assert memory[0] == memory[1]

    def test_the_peak_holds_the_largest_matrix_while_it_is_packed(self, specs: Specs) -> None:
        memory = cpu_host_memory(specs["llama3"], CpuOptions(slots=1, n_positions=64, dtype="bfloat16"))
        assert memory.peak - memory.resident + memory.kv == 128256 * 4096 * 6
