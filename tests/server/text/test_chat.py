"""Chat templates: rendering as Hugging Face does, continuing, folding, where they come from, what they may not do."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tokenizers

from models.cpu.embedded import embedded_directory
from models.families import FAMILIES
from server.errors import ConfigurationError, TemplateError
from server.text.chat import ChatTemplate, Message
from server.text.tokenizer import Tokenizer

ROLES = "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
PROMPTED = ROLES + "{% if add_generation_prompt %}[assistant]{% endif %}"


def said(*pairs: tuple[str, str]) -> list[Message]:
    return [Message(role=role, content=content) for role, content in pairs]


@pytest.fixture
def template(byte_level: Tokenizer) -> Callable[[str], ChatTemplate]:
    return lambda source: ChatTemplate(source, byte_level)


@pytest.fixture
def family(byte_level: Tokenizer) -> Callable[[str], ChatTemplate]:
    """A family's default template."""
    return lambda name: ChatTemplate(FAMILIES[name].default_template, byte_level)


Make = Callable[[str], ChatTemplate]


# --- rendering ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama3", "mistral", "codellama", "chatml"])
@pytest.mark.parametrize(
    "conversation",
    [
        [("user", "hi")],
        [("user", "  a "), ("assistant", "b"), ("user", "距离 <tag> & 'quotes'")],
    ],
)
def test_renders_as_transformers_does(
    byte_level_raw: tokenizers.Tokenizer, family: Make, name: str, conversation: list[tuple[str, str]]
) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level_raw, bos_token="<s>", eos_token="</s>"
    ).apply_chat_template(
        [{"role": role, "content": content} for role, content in conversation],
        chat_template=FAMILIES[name].default_template,
        tokenize=False,
        add_generation_prompt=True,
    )

    assert family(name).render(said(*conversation)) == theirs


def test_blocks_leave_no_white_space_behind(template: Make) -> None:
    source = "{% for message in messages %}\n    {% if true %}\n{{ message['content'] }}\n    {% endif %}\n{% endfor %}"

    assert template(source).render(said(("user", "a"), ("user", "b"))) == "a\nb\n"


def test_generation_tags_are_transparent(template: Make) -> None:
    source = "{%- for m in messages -%}{% generation %}<{{ m['content'] }}>{%- endgeneration -%}{%- endfor -%}"

    assert template(source).render(said(("user", "a"), ("user", "b"))) == "<a><b>"


@pytest.mark.parametrize(
    ("expression", "printed"),
    [
        ("' x '.strip()", "x"),
        ("'a,b'.split(',')[1]", "b"),
        ("'abc'.startswith('ab')", "True"),
        ("bos_token + eos_token", "<s></s>"),
        ("{'b': '<é>', 'a': [1]} | tojson", '{"b": "<é>", "a": [1]}'),
        ("{'a': 1} | tojson(indent=2)", '{\n  "a": 1\n}'),
        ("tools is none", "True"),
        ("strftime_now('%Y')", str(datetime.now().year)),
        ("undefined_variable", ""),
    ],
)
def test_templates_have_what_hugging_faces_have(template: Make, expression: str, printed: str) -> None:
    assert template("{{ " + expression + " }}").render(said(("user", "x"))) == printed


def test_loops_can_break(template: Make) -> None:
    source = "{% for m in messages %}{{ m['content'] }}{% break %}{% endfor %}"

    assert template(source).render(said(("user", "a"), ("user", "b"))) == "a"


def test_names_and_parts_and_tools_reach_the_template(template: Make) -> None:
    class Tool(msgspec.Struct):
        name: str

    source = "{{ messages[0]['name'] }}:{{ messages[0]['content'] }}:{{ tools | tojson }}"
    message = msgspec.json.decode(
        b'{"role":"user","name":"Ann","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}', type=Message
    )

    assert template(source).render([message], [Tool("f")]) == 'Ann:ab:[{"name": "f"}]'


# --- continuing the assistant ---------------------------------------------------------------------------------------


def test_a_last_assistant_message_is_continued(family: Make) -> None:
    conversation = said(("user", "hi"), ("assistant", "Sure, \n"))

    assert family("chatml").render(conversation) == ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nSure,")
    assert family("codellama").render(conversation) == "<s>[INST] hi [/INST] Sure,"


def test_the_cut_is_at_the_message_even_if_its_text_occurs_behind_it(family: Make) -> None:
    """ "end" is also in <|im_end|>, "assistant" also in the next header."""
    for text in ("end", "assistant", ""):
        prompt = family("chatml").render(said(("user", "hi"), ("assistant", text)))
        assert prompt == f"<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n{text}"


def test_a_template_that_drops_the_message_cannot_continue_it(template: Make) -> None:
    with pytest.raises(TemplateError, match="left it out"):
        template("{{ messages[0]['content'] }}").render(said(("user", "a"), ("assistant", "b")))


# --- templates that refuse ------------------------------------------------------------------------------------------


def test_what_a_template_accepts_is_rendered_verbatim(template: Make) -> None:
    conversation = said(("system", "S"), ("user", "a"), ("user", "b"))

    assert template(PROMPTED).render(conversation) == "[system]S[user]a[user]b[assistant]"


@pytest.mark.parametrize("name", ["mistral", "codellama"])
def test_two_user_turns_are_merged_where_the_template_refuses_them(family: Make, name: str) -> None:
    prompt = family(name).render(said(("user", "a"), ("user", "b")))

    assert prompt == "<s>[INST] a\n\nb [/INST]"


def test_the_system_text_moves_into_the_first_user_turn_where_there_is_no_such_role(family: Make) -> None:
    conversation = said(("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c"))

    assert family("mistral").render(conversation) == "<s>[INST] Be brief.\n\na [/INST] b</s>[INST] c [/INST]"


def test_an_empty_system_message_vanishes(family: Make) -> None:
    assert family("mistral").render(said(("system", ""), ("user", "a"))) == "<s>[INST] a [/INST]"


def test_what_is_still_refused_is_a_template_error_with_the_templates_words(family: Make) -> None:
    with pytest.raises(TemplateError) as refusal:
        family("mistral").render(said(("assistant", "a"), ("user", "b")))

    assert refusal.value.text == ("Template error: Conversation roles must alternate user/assistant/user/assistant/...")
    assert (refusal.value.status, refusal.value.error_type) == (422, "template_error")


def test_no_messages_are_refused(family: Make) -> None:
    with pytest.raises(TemplateError, match="cannot be empty"):
        family("chatml").render([])


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0]['content'] + 1 }}",
        "{{ 1 / 0 }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
    ],
)
def test_the_sandbox_turns_misbehaviour_into_a_template_error(template: Make, source: str) -> None:
    with pytest.raises(TemplateError):
        template(source).render(said(("user", "x")))


# --- where templates come from --------------------------------------------------------------------------------------


Write = Callable[..., Path]


@pytest.fixture
def load(tmp_path: Path, byte_level: Tokenizer) -> Callable[..., ChatTemplate]:
    """load(family, {file: content}): a checkpoint directory with these files."""

    def make(family: str = "llama", files: dict[str, Any] | None = None) -> ChatTemplate:
        for name, content in (files or {}).items():
            (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return ChatTemplate.load(tmp_path, family, byte_level)

    return make


SOURCES: Sequence[tuple[str, Any]] = (
    ("chat_template.jinja", "jinja"),
    ("chat_template.json", {"chat_template": "json"}),
    ("tokenizer_config.json", {"chat_template": "tokenizer"}),
    ("processor_config.json", {"chat_template": "preprocessor"}),
)


@pytest.mark.parametrize(("first", "printed"), list(enumerate(["jinja", "json", "tokenizer", "preprocessor"])), ids=str)
def test_the_first_file_that_holds_a_template_wins(load: Callable[..., ChatTemplate], first: int, printed: str) -> None:
    assert load("llama3", dict(SOURCES[first:])).render(said(("user", "x"))) == printed


def test_of_named_templates_the_default_is_taken(load: Callable[..., ChatTemplate]) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]

    assert load(files={"tokenizer_config.json": {"chat_template": named}}).render(said(("user", "x"))) == "plain"


def test_the_family_lends_its_template_to_a_checkpoint_without_one(load: Callable[..., ChatTemplate]) -> None:
    assert load("llama3").render(said(("user", " hi "))) == (
        "<s><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_without_any_template_chat_is_a_template_error(load: Callable[..., ChatTemplate]) -> None:
    with pytest.raises(TemplateError) as refusal:
        load("llama", {"tokenizer_config.json": {}}).render(said(("user", "x")))

    assert refusal.value.text == "Template error: this model has no chat template"


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("tokenizer_config.json", {"chat_template": "{% for %}"}, "chat_template, line 1"),
        ("chat_template.jinja", "ok\n{{ x | no_such_filter }}", "chat_template, line 2"),
        ("tokenizer_config.json", {"chat_template": 7}, "$.chat_template"),
        ("chat_template.json", {"chat_template": [{"name": "rag", "template": ""}]}, "no entry 'default', only rag"),
        ("chat_template.json", "{", "chat_template.json"),
    ],
)
def test_a_malformed_template_is_named_with_its_file(
    load: Callable[..., ChatTemplate], tmp_path: Path, file: str, content: Any, told: str
) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        load(files={file: content})

    assert str(tmp_path / file) in refusal.value.text
    assert told in refusal.value.text


def test_the_embedded_models_own_template(embedded_set_up: None) -> None:
    directory = embedded_directory()

    prompt = ChatTemplate.load(directory, "llama", Tokenizer.load(directory)).render(said(("user", "hi")))

    assert prompt.startswith("<|im_start|>system\n")
    assert prompt.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
