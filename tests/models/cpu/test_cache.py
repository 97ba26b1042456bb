"""Which positions a slot holds, and which writes of a step would only repeat them."""

from __future__ import annotations

import pytest
import torch

from models.backend import StepError
from models.cpu.cache import KvCache, Writes
from models.protocol import SlotInput
from models.spec import ModelSpec

SPEC = ModelSpec(
    architecture="LlamaForCausalLM",
    model_type="llama",
    hidden_size=8,
    intermediate_size=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=6,
    vocab_size=10,
    max_position_embeddings=64,
    rope_theta=1e4,
    rope_scaling=None,
    rms_norm_eps=1e-5,
    tied=True,
    sliding_window=None,
    attention_bias=False,
    mlp_bias=False,
)


@pytest.fixture
def cache() -> KvCache:
    """Three slots of 20 positions."""
    return KvCache(SPEC, 3, 20, torch.float32)


def _written(cache: KvCache, writes: Writes) -> list[tuple[int, int, int]]:
    """(row, slot, position) of all that is written, found where it is read: every head of a row holds its number."""
    shape = (len(writes.rows), 2 * SPEC.kv_heads, SPEC.head_dim)
    cache.layers[0].fill_(-1)
    cache.write(0, writes.places, writes.rows.float()[:, None, None].expand(shape))
    keys, values = cache.spans(0, 3, 20)[0]
    found = {
        (int(row), slot, position)
        for part in (keys, values)
        for (slot, position) in (part[:, 0, :, 0] >= 0).nonzero().tolist()
        for row in part[slot, :, position].unique().tolist()
    }
    assert sum(int((part >= 0).sum()) for part in (keys, values)) == len(writes.rows) * shape[1] * shape[2]
    return sorted(found)


def test_keys_and_values_of_slots_are_views_of_every_layer(cache: KvCache) -> None:
    cache.layers[1][:, 2, :, 4] = torch.arange(4.0).view(2, 2, 1)
    keys, values = cache.spans(2, 1, 5)[1]
    assert keys.shape == values.shape == (1, SPEC.kv_heads, 5, SPEC.head_dim)
    assert keys[0, :, 4, 0].tolist() == [0, 1]
    assert values[0, :, 4, 0].tolist() == [2, 3]
    assert not cache.spans(2, 1, 5)[0].any()
    assert not cache.spans(1, 1, 5)[1].any()
    assert cache.spans(0, 3, 5)[1].flatten(1, 2).data_ptr() == cache.layers[1].data_ptr()


def test_every_span_is_a_view_of_the_keys_of_all_slots_and_then_the_values(cache: KvCache) -> None:
    cache.layers[1][:, 2, :, 4] = torch.arange(4.0).view(2, 2, 1)
    spans = cache.every_span(5)
    for span, each in zip(spans, cache.spans(0, 3, 5), strict=True):
        assert torch.equal(span.unflatten(0, (2, 3)), each)
    assert spans[1].shape == (6, SPEC.kv_heads, 5, SPEC.head_dim)
    assert (spans[1][2, :, 4, 0].tolist(), spans[1][5, :, 4, 0].tolist()) == ([0, 1], [2, 3])
    assert spans[1].data_ptr() == cache.layers[1].data_ptr()


def test_a_feed_writes_to_its_slot_of_every_layer(cache: KvCache) -> None:
    for layer, place in enumerate(cache.places(1, 3, 5)):
        place.fill_(layer + 1)
    for layer in range(SPEC.layers):
        expected = torch.zeros_like(cache.layers[layer])
        expected[:, 1, :, 3:5] = layer + 1
        assert torch.equal(cache.layers[layer], expected)


def test_every_slot_begins_on_a_cache_line() -> None:
    for n_positions in (2, 17, 33):
        cache = KvCache(SPEC, 3, n_positions, torch.float32)
        assert all(layer.data_ptr() % 64 == 0 for layer in cache.layers)
        assert all(layer.stride(2) * layer.element_size() % 64 == 0 for layer in cache.layers)


def test_a_new_token_is_written_and_a_repeated_one_is_not(cache: KvCache) -> None:
    cache.fed(0, [5, 6, 7], 0)
    cache.fed(2, [8], 0)
    first = [SlotInput(2, 3, 1), SlotInput(0, 9, 3)]
    assert _written(cache, cache.stepped(first)) == [(0, 2, 1), (1, 0, 3)]
    assert _written(cache, cache.stepped(first)) == []
    assert _written(cache, cache.stepped([SlotInput(2, 3, 1), SlotInput(0, 4, 4)])) == [(1, 0, 4)]


def test_another_token_at_a_held_position_is_written_and_what_came_behind_is_forgotten(cache: KvCache) -> None:
    cache.fed(0, [5, 6, 7], 0)
    assert _written(cache, cache.stepped([SlotInput(0, 1, 1)])) == [(0, 0, 1)]
    with pytest.raises(StepError, match="slot 0 holds 2 tokens: position 3"):
        cache.check_reachable(0, 3)
    assert _written(cache, cache.stepped([SlotInput(0, 7, 2)])) == [(0, 0, 2)]


def test_going_back_to_a_held_position_forgets_what_came_behind(cache: KvCache) -> None:
    cache.fed(0, [5, 6, 7], 0)
    assert _written(cache, cache.stepped([SlotInput(0, 5, 0)])) == []
    with pytest.raises(StepError, match="holds 1 tokens"):
        cache.check_reachable(0, 2)


def test_a_feed_replaces_what_comes_from_its_position_on(cache: KvCache) -> None:
    cache.fed(1, [5, 6, 7, 8], 0)
    cache.fed(1, [1], 2)
    cache.check_reachable(1, 3)
    with pytest.raises(StepError):
        cache.check_reachable(1, 4)


def test_after_forgetting_every_slot_is_empty(cache: KvCache) -> None:
    cache.fed(1, [5, 6], 0)
    cache.forget()
    with pytest.raises(StepError, match="slot 1 holds 0 tokens"):
        cache.check_reachable(1, 1)
