"""Mistral 7B: [INST] around user turns, strict alternation, no system role."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.families.family import Family

# The instruction format of the Mistral-7B-Instruct model card.
_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ('user', 'assistant') %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)

FAMILY = Family(name="mistral", stop_tokens=("</s>",), default_template=_TEMPLATE)


def recognises(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "mistral" or "MistralForCausalLM" in (config.get("architectures") or ())
