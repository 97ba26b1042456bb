"""Messages become a prompt: the checkpoint's Jinja chat template in a sandbox (wire contract, section 11).

Knows no request beyond its messages, and no token ids: the special tokens are in the text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import msgspec
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from models.families import FAMILIES
from server.errors import ConfigurationError, TemplateError
from server.text.files import TemplateFile, Templates, TokenizerConfig, read_json_if_there, read_text
from server.text.messages import Message, folded, text_of_message
from server.text.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "Message"]

# Marks where the text of a message that is to be continued ends: noncharacters, which no template writes itself.
_END_MARK = "\ufdd0\ufdd1"

# What a template can raise: its own refusals, and the operators of its expressions.
_RENDER_ERRORS = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class ChatTemplate:
    """One model's template, compiled once; without one, every render is a TemplateError."""

    def __init__(self, source: str | None, tokenizer: Tokenizer, origin: str = "chat template") -> None:
        try:
            self._template = None if source is None else _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigurationError(f"{origin}: chat_template, line {error.lineno}: {error.message}") from error
        self._special = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
        self.uses_tools = source is not None and "tools" in _variables_of(source)

    @classmethod
    def load(cls, directory: Path, family: str, tokenizer: Tokenizer) -> ChatTemplate:
        """The first of chat_template.jinja, chat_template.json, tokenizer_config.json and processor_config.json that
        holds one, else the family's default. ConfigurationError when it is malformed."""
        plain = directory / "chat_template.jinja"
        if plain.exists():
            return cls(read_text(plain), tokenizer, str(plain))
        places: tuple[tuple[str, type[TemplateFile | TokenizerConfig]], ...] = (
            ("chat_template.json", TemplateFile),
            ("tokenizer_config.json", TokenizerConfig),
            ("processor_config.json", TemplateFile),
        )
        for name, shape in places:
            source = _chosen(read_json_if_there(directory / name, shape).chat_template, directory / name)
            if source is not None:
                return cls(source, tokenizer, str(directory / name))
        default = FAMILIES[family].default_template if family in FAMILIES else None
        return cls(default, tokenizer, f"default of family {family}")

    def render(self, messages: Sequence[Message], tools: Sequence[msgspec.Struct] = ()) -> str:
        """The prompt. If the last message is the assistant's, it ends with that message's text, to be continued.

        A template that refuses the messages gets them once more with the system text folded into the first user turn
        and turns of one role merged. TemplateError when it refuses those too, or when there is no template.
        """
        if self._template is None:
            raise TemplateError("this model has no chat template")
        if not messages:
            raise TemplateError("`messages` cannot be empty")
        try:
            return self._render(messages, tools)
        except _RENDER_ERRORS as refusal:
            plainer = folded(messages)
            if list(plainer) == list(messages):
                raise TemplateError(str(refusal)) from refusal
        try:
            return self._render(plainer, tools)
        except _RENDER_ERRORS as refusal:
            raise TemplateError(str(refusal)) from refusal

    def _render(self, messages: Sequence[Message], tools: Sequence[msgspec.Struct]) -> str:
        assert self._template is not None
        variables = [_variables(message) for message in messages]
        continued = messages[-1].role == "assistant"
        if continued:
            variables[-1]["content"] = variables[-1]["content"].rstrip() + _END_MARK
        prompt = self._template.render(
            messages=variables,
            tools=[msgspec.to_builtins(tool) for tool in tools] or None,
            add_generation_prompt=not continued,
            **self._special,
        )
        if not continued:
            return prompt
        end = prompt.rfind(_END_MARK)
        if end < 0:
            raise jinja2.TemplateError("the last assistant message cannot be continued: the template left it out")
        return prompt[:end]


def _variables(message: Message) -> dict[str, Any]:
    """A message as the template sees it."""
    variables = {"role": message.role, "content": text_of_message(message)}
    if message.name is not None:
        variables["name"] = message.name
    return variables


def _variables_of(source: str) -> set[str]:
    """What a template takes from its caller."""
    return meta.find_undeclared_variables(_environment().parse(source))


def _chosen(templates: Templates, path: Path) -> str | None:
    """The template; of a named list, the one called "default"."""
    if templates is None or isinstance(templates, str):
        return templates
    named = {entry.name: entry.template for entry in templates}
    if named and "default" not in named:
        raise ConfigurationError(f"{path}: chat_template has no entry 'default', only {', '.join(named)}")
    return named.get("default")


# --- the environment, as Hugging Face's templates expect it -------------------------------------------------------


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's tokens for training: its body is rendered and nothing else."""

    tags = {"generation"}  # noqa: RUF012 (as Extension declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False) -> str:
    """Unlike Jinja's own, without HTML escapes and in the order of the keys."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)
