"""ChatML, for checkpoints that were tuned on it and forgot to bring the template. Only used when configured."""

from __future__ import annotations

from models.families.family import Family

_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

FAMILY = Family(name="chatml", stop_tokens=("<|im_end|>",), default_template=_TEMPLATE)
