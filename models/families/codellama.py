"""CodeLlama: Llama 2's chat format, rope theta 1,000,000, infilling with an end token of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.families.family import Family, Infilling

# The chat format of Llama 2, which CodeLlama-Instruct was tuned on: the system text sits inside the first user turn.
_TEMPLATE = (
    "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% set turns = messages[1:] if messages[0]['role'] == 'system' else messages %}"
    "{% for message in turns %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' }}"
    "{% if loop.first and system %}{{ '<<SYS>>\n' + system + '\n<</SYS>>\n\n' }}{% endif %}"
    "{{ message['content'] | trim }}{{ ' [/INST]' }}"
    "{% else %}{{ ' ' + (message['content'] | trim) + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)

# Prefix, suffix, middle: one of the orders that the 7B and 13B models know (arXiv:2308.12950, section 2.3). The mark is
# that of transformers' CodeLlamaTokenizer.
_INFILLING = Infilling(mark="<FILL_ME>", prefix="▁<PRE>", suffix="▁<SUF>", middle="▁<MID>")

FAMILY = Family(name="codellama", stop_tokens=("</s>", "▁<EOT>"), default_template=_TEMPLATE, infilling=_INFILLING)


def recognises(config: Mapping[str, Any]) -> bool:
    return config.get("rope_theta") == 1_000_000.0 or config.get("vocab_size") == 32_016
