"""Llama 3 and its descendants: headers around roles, two stop tokens, rope theta 500,000.

Published checkpoints differ in which end tokens their JSON files name (the first release's generation_config.json
lacked <|eot_id|>), so both are stop tokens here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.families.family import Family

# The prompt format of the Llama 3 model card.
_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim }}{{ '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

FAMILY = Family(name="llama3", stop_tokens=("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"), default_template=_TEMPLATE)


def recognises(config: Mapping[str, Any]) -> bool:
    return config.get("rope_theta") == 500_000.0 or config.get("vocab_size") == 128_256
