"""langchain-huggingface, unmodified, against the real small model (wire contract, section 17)."""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

import pytest
from huggingface_hub.errors import ValidationError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what it imports is not ours to mend
    from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint

PROMPT = "The capital of France is"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def endpoint(url: str, **parameters: Any) -> HuggingFaceEndpoint:
    """It always samples, at 0.8 unless told otherwise: so low that the likeliest token is drawn."""
    chosen = {"max_new_tokens": 8, "temperature": 0.01, "seed": 7, **parameters}
    return HuggingFaceEndpoint(endpoint_url=url, huggingfacehub_api_token="hf_none", **chosen)


def test_17_invoke_and_stream(smollm2: Any) -> None:
    llm = endpoint(smollm2.url)
    text = llm.invoke(PROMPT)
    assert text.startswith(" Paris")
    assert "".join(llm.stream(PROMPT)) == text


def test_17_asynchronously(smollm2: Any) -> None:
    llm = endpoint(smollm2.url)

    async def both() -> tuple[str, str]:
        return await llm.ainvoke(PROMPT), "".join([piece async for piece in llm.astream(PROMPT)])

    text, streamed = asyncio.run(both())
    assert text.startswith(" Paris")
    assert streamed == text


def test_17_stop_strings_are_cut_off_by_the_client(smollm2: Any) -> None:
    llm = endpoint(smollm2.url, max_new_tokens=30)
    whole = llm.invoke(PROMPT)
    assert "." in whole
    assert llm.invoke(PROMPT, stop=["."]) == whole[: whole.index(".")]


def test_17_every_parameter_of_its_own(smollm2: Any) -> None:
    given = {"top_k": 10, "top_p": 0.9, "typical_p": 0.95, "repetition_penalty": 1.1, "truncate": 3, "watermark": True}
    llm = endpoint(smollm2.url, **given, return_full_text=True, do_sample=True)
    assert llm.invoke(PROMPT).startswith(PROMPT)


def test_17_errors_have_their_types(smollm2: Any) -> None:
    with pytest.raises(ValidationError, match="`top_p` must be > 0"):
        endpoint(smollm2.url, top_p=1.0).invoke(PROMPT)


def test_17_chats(smollm2: Any) -> None:
    chat = ChatHuggingFace(llm=endpoint(smollm2.url), model_id=MODEL, max_tokens=12)
    question = "What is the capital of France?"
    answer = chat.invoke(question)
    assert "Paris" in answer.content
    assert answer.usage_metadata["output_tokens"] <= 12
    assert "".join(piece.content for piece in chat.stream(question)) == answer.content
