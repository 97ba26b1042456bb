"""What differs between the model families: how they are recognised, stop tokens, chat template, infilling.

Pure data and functions over config.json; both processes may import this. Knows no tokenizer and no device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.families import chatml, codellama, llama3, mistral
from models.families.family import Family, Infilling

__all__ = ["FAMILIES", "Family", "Infilling", "UnknownFamilyError", "family_named", "family_of"]

# A Llama that is none of the known ones brings its own template and stop tokens, or has none.
LLAMA = Family(name="llama")

FAMILIES: Mapping[str, Family] = {
    family.name: family for family in (llama3.FAMILY, mistral.FAMILY, codellama.FAMILY, chatml.FAMILY, LLAMA)
}


class UnknownFamilyError(ValueError):
    """config.json or the configuration names a family that is not served."""


def family_named(name: str) -> Family:
    """The family that a configuration forces; UnknownFamilyError lists the names there are."""
    try:
        return FAMILIES[name]
    except KeyError:
        raise UnknownFamilyError(f"family {name!r} is not known; known: auto, {', '.join(FAMILIES)}") from None


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a checkpoint from its config.json; UnknownFamilyError for anything but Llama and Mistral.

    ChatML is never recognised, since nothing in config.json tells it: such checkpoints bring their template.
    """
    model_type = config.get("model_type")
    if model_type not in ("llama", "mistral"):
        raise UnknownFamilyError(f"config.json: model_type {model_type!r} is not served; served: llama, mistral")
    if mistral.recognises(config):
        return mistral.FAMILY
    if llama3.recognises(config):
        return llama3.FAMILY
    if codellama.recognises(config):
        return codellama.FAMILY
    return LLAMA
