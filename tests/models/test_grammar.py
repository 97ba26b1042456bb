"""What grammars allow and refuse, and the matcher that follows them over real kinds of tokenizers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from models.backend import Candidates, ConfigurationError, Logits
from models.grammar import GrammarError, check, closed
from models.matcher import Matcher, Vocabulary
from models.protocol import Decode, Feed, Grammar, SamplingParams, SimulatedOptions, Start
from models.sampler import choose, sample
from models.sequence_sampler import SequenceSampler
from models.simulated import SimulatedBackend
from models.steps import Steps

EOS = 2


@pytest.fixture(scope="module")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer as Llama 2's and Mistral's: pieces with a mark for the space, and a token for every byte."""
    directory = tmp_path_factory.mktemp("byte-fallback")
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁red", "red", "e", "▁é", "ab"]
    tokenizer = Tokenizer(
        models.BPE({name: i for i, name in enumerate(names)}, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module")
def byte_level(tiny_checkpoint: Callable[..., Path]) -> Path:
    """A tokenizer as Llama 3's: 7 special tokens and the 256 bytes."""
    return tiny_checkpoint("codellama")


def allowed(matcher: Matcher, size: int) -> set[int]:
    return set(np.flatnonzero(matcher.allowed(size)).tolist())


class TestMatcher:
    def test_byte_fallback_tokens_stand_for_their_bytes(self, byte_fallback: Path) -> None:
        matcher = Matcher(Vocabulary(byte_fallback), Grammar("regex", " ?(red|é)"), (EOS,), ())
        names = json.loads((byte_fallback / "tokenizer.json").read_text())["model"]["vocab"]
        first = {"▁", "<0x20>", "▁red", "red", "<0x72>", "<0xC3>", "▁é"}
        assert allowed(matcher, len(names)) == {names[name] for name in first}
        matcher.advance(names["<0xC3>"])
        assert allowed(matcher, len(names)) == {names["<0xA9>"]}
        matcher.advance(names["<0xA9>"])
        assert allowed(matcher, len(names)) == {EOS}

    def test_byte_level_tokens_stand_for_their_bytes(self, byte_level: Path) -> None:
        raw = Tokenizer.from_file(str(byte_level / "tokenizer.json"))
        matcher = Matcher(Vocabulary(byte_level), Grammar("regex", "é|x"), (EOS,), ())
        first, second = raw.encode("é", add_special_tokens=False).ids
        (x,) = raw.encode("x", add_special_tokens=False).ids
        assert allowed(matcher, raw.get_vocab_size()) == {first, x}
        matcher.advance(first)
        assert allowed(matcher, raw.get_vocab_size()) == {second}

    def test_an_end_token_is_allowed_exactly_where_the_text_is_complete(self, byte_level: Path) -> None:
        raw = Tokenizer.from_file(str(byte_level / "tokenizer.json"))
        matcher = Matcher(Vocabulary(byte_level), Grammar("regex", "a{2,3}"), (1, EOS), ())
        (a,) = raw.encode("a", add_special_tokens=False).ids
        for expected in ({a}, {a}, {1, EOS, a}, {1, EOS}):
            assert allowed(matcher, raw.get_vocab_size()) == expected
            matcher.advance(a)

    def test_only_the_given_end_tokens_end_an_answer(self, byte_level: Path) -> None:
        """The library takes </s> for one by its name."""
        matcher = Matcher(Vocabulary(byte_level), Grammar("regex", ""), (1,), ())
        assert allowed(matcher, 263) == {1}

    def test_a_row_may_be_shorter_or_longer_than_the_vocabulary(self, byte_level: Path) -> None:
        matcher = Matcher(Vocabulary(byte_level), Grammar("regex", ".*"), (EOS,), ())
        whole = matcher.allowed(263)
        assert np.array_equal(matcher.allowed(100), whole[:100])
        longer = matcher.allowed(1000)
        assert np.array_equal(longer[:263], whole)
        assert not longer[263:].any()

    @settings(max_examples=40, deadline=None)
    @given(draws=st.lists(st.integers(0, 1000), min_size=1, max_size=30), cut=st.integers(0, 30))
    def test_a_replayed_matcher_goes_on_where_the_first_one_was(
        self, byte_level: Path, draws: list[int], cut: int
    ) -> None:
        grammar = Grammar("json", '{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}')
        vocabulary = Vocabulary(byte_level)
        matcher, emitted = Matcher(vocabulary, grammar, (EOS,), ()), []
        for draw in draws:
            choices = sorted(allowed(matcher, 263) - {EOS})
            if not choices:
                break
            emitted.append(choices[draw % len(choices)])
            matcher.advance(emitted[-1])
        again = Matcher(vocabulary, grammar, (EOS,), emitted[:cut])
        for token in emitted[cut:]:
            again.advance(token)
        assert np.array_equal(again.allowed(263), matcher.allowed(263))

    def test_a_token_out_of_the_language_is_a_failure(self, byte_level: Path) -> None:
        matcher = Matcher(Vocabulary(byte_level), Grammar("regex", "ab"), (EOS,), ())
        assert matcher.failure() == ""
        matcher.advance(40)
        assert matcher.failure() != ""


class TestVocabularyThatCannotBeUsed:
    def test_without_the_library_it_says_what_to_install(
        self, byte_level: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "llguidance", None)
        with pytest.raises(ConfigurationError, match="package llguidance in the worker's environment"):
            Vocabulary(byte_level).tokenizer()

    def test_another_kind_of_tokenizer_is_named(self, tmp_path: Path) -> None:
        tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
        tokenizer.decoder = decoders.WordPiece()
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        with pytest.raises(ConfigurationError, match=r"tokenizer\.json: grammars cannot use this tokenizer"):
            Vocabulary(tmp_path).tokenizer()

    def test_it_ends_the_request_with_a_grammar_and_no_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "llguidance", None)
        backend = SimulatedBackend(tmp_path, SimulatedOptions(slots=2))
        backend.stage(lambda *_: None)
        backend.load(lambda *_: None)
        steps = Steps(backend, Vocabulary(tmp_path))
        plain = Start(sampling=SamplingParams(), eos=(EOS,), max_new_tokens=5)
        bound = Start(sampling=SamplingParams(), eos=(EOS,), max_new_tokens=5, grammar=Grammar("regex", "a"))
        steps.run(Feed(step=1, slot=0, sequence=1, tokens=(5, 6), start=plain))
        (drawn,) = steps.run(Feed(step=2, slot=1, sequence=2, tokens=(5, 6), start=bound)).drawn
        assert (drawn.sequence, drawn.token, drawn.finish) == (2, -1, "grammar")
        (drawn,) = steps.run(Decode(step=3, live=((0, 1), (1, 2)))).drawn
        assert (drawn.sequence, drawn.finish) == (1, "")


REFUSED: list[tuple[Grammar, str]] = [
    (Grammar("regex", "("), "unclosed group"),
    (Grammar("regex", r"a\1"), "backreferences are not supported"),
    (Grammar("regex", r"[^\x00-\x{10FFFF}]"), "no text matches|NoExtension"),
    (Grammar("json", '{"properties":{"a":{"type":"string","pattern":"("}}}'), "unclosed group"),
    (Grammar("json", '{"properties":{"a":{"type":"string","format":"zzz"}}}'), "Unknown format: zzz"),
    (Grammar("json", '{"type":"array","uniqueItems":true}'), "Unimplemented keys"),
]


@pytest.mark.parametrize(("grammar", "reason"), REFUSED)
def test_a_grammar_that_nothing_can_follow_is_refused_on_one_line(grammar: Grammar, reason: str) -> None:
    with pytest.raises(GrammarError, match=reason) as caught:
        check(grammar)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("regex", r"^\d{3}$|x$"),
        Grammar("regex", ""),
        Grammar("regex", "[a-z]{1,100000}"),
        Grammar("json", '{"type":"object"}'),
        Grammar("json", '{"oneOf":[{"type":"string"},{"type":"string","maxLength":3}]}'),
        Grammar("json", json.dumps({"properties": {f"k{i}": {"type": "string"} for i in range(500)}})),
    ],
)
def test_a_grammar_that_can_be_followed_passes(grammar: Grammar) -> None:
    check(grammar)


A: dict[str, Any] = {"properties": {"a": {"type": "integer"}}}
CLOSED: dict[str, Any] = {"properties": {"a": {"type": "integer"}}, "type": "object", "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (A, CLOSED),
        ({"items": A}, {"items": CLOSED}),
        ({"anyOf": [A, True]}, {"anyOf": [CLOSED, True]}),
        ({"$defs": {"x": A}}, {"$defs": {"x": CLOSED}}),
        ({**A, "additionalProperties": True}, {**A, "additionalProperties": True}),
        ({**A, "anyOf": [A]}, {**A, "anyOf": [A]}),
        ({"$defs": {"x": A}, "allOf": [A]}, {"$defs": {"x": A}, "allOf": [A]}),
        ({"properties": {"properties": A}}, {**CLOSED, "properties": {"properties": CLOSED}}),
        ({"type": "string"}, {"type": "string"}),
        (True, True),
    ],
)
def test_objects_that_name_their_properties_have_no_others(schema: Any, expected: Any) -> None:
    before = json.dumps(schema)
    assert closed(schema) == expected
    assert json.dumps(schema) == before


class Fixed:
    """A matcher whose next tokens are known."""

    def __init__(self, mask: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
        self._mask = mask
        self.taken: list[int] = []

    def allowed(self, size: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return self._mask[:size]

    def advance(self, token: int) -> None:
        self.taken.append(token)


ROWS = st.lists(st.floats(-20, 20, width=32), min_size=8, max_size=8)


@settings(max_examples=150, deadline=None)
@given(
    row=ROWS,
    mask=st.lists(st.booleans(), min_size=8, max_size=8).filter(any),
    params=st.sampled_from(
        [
            SamplingParams(top_n_tokens=3),
            SamplingParams(do_sample=True, seed=4, temperature=1.7),
            SamplingParams(do_sample=True, seed=4, top_k=3, top_p=0.8),
            SamplingParams(do_sample=True, seed=4, typical_p=0.6),
            SamplingParams(do_sample=True, seed=4, repetition_penalty=1.5, frequency_penalty=0.5),
        ]
    ),
)
def test_a_draw_is_that_of_a_row_without_the_forbidden_tokens(
    row: list[float], mask: list[bool], params: SamplingParams
) -> None:
    logits = np.array([row], dtype=np.float32)
    allowed_now = np.array(mask)
    matcher: Any = Fixed(allowed_now)
    expected = SequenceSampler(params, (1, 2), (3, 3))
    (choice,) = sample(Logits(logits), [SequenceSampler(params, (1, 2), (3, 3), matcher)], lambda _: Logits(logits))
    assert [choice] == choose(np.where(allowed_now, logits, np.float32(-np.inf)), [expected])
    assert matcher.taken == [choice.token]
    assert mask[choice.token]


def test_candidates_are_not_enough_for_a_grammar() -> None:
    logits = np.array([[5.0, 4.0, 3.0, -2.0]], dtype=np.float32)
    listed = Candidates(np.array([[0, 1]]), logits[:, :2], np.array([np.log(np.exp(logits).sum())], dtype=np.float32))
    asked: list[list[int]] = []

    def full(rows: list[int]) -> Logits:
        asked.append(rows)
        return Logits(logits)

    matcher: Any = Fixed(np.array([False, False, False, True]))
    (choice,) = sample(listed, [SequenceSampler(SamplingParams(), (), (), matcher)], full)
    assert (choice.token, choice.logprob, asked) == (3, 0.0, [[0]])
