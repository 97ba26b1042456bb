"""The clients people have, unmodified, over a real socket, against the real small model."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import openai
import pytest
import text_generation
from huggingface_hub import InferenceClient

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def test_huggingface_hub_text_generation(smollm2: Any) -> None:
    client = InferenceClient(base_url=smollm2.url)
    plain = client.text_generation("The capital of France is", max_new_tokens=8, return_full_text=False)
    assert "Paris" in plain
    assert "".join(client.text_generation("The capital of France is", max_new_tokens=8, stream=True)) == plain


def test_the_root_route_returns_the_prompt_too_as_tgi_does(smollm2: Any) -> None:
    answer = InferenceClient(base_url=smollm2.url).text_generation("The capital of France is", max_new_tokens=2)
    assert answer.startswith("The capital of France is ")


def test_huggingface_hub_text_generation_with_details(smollm2: Any) -> None:
    client = InferenceClient(base_url=smollm2.url)
    answer = client.text_generation("The capital of France is", max_new_tokens=8, details=True, return_full_text=False)
    assert answer.details.generated_tokens == 8
    assert answer.details.finish_reason == "length"
    *_, last = client.text_generation(
        "The capital of France is", max_new_tokens=8, details=True, stream=True, return_full_text=False
    )
    assert last.generated_text == answer.generated_text


def test_huggingface_hub_chat_completion(smollm2: Any) -> None:
    client = InferenceClient(base_url=smollm2.url)
    plain = client.chat_completion(QUESTION, max_tokens=12, temperature=0)
    text = plain.choices[0].message.content
    assert "Paris" in text
    chunks = client.chat_completion(QUESTION, max_tokens=12, temperature=0, stream=True)
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == text


def test_openai_chat_completion(smollm2: Any) -> None:
    with openai.OpenAI(base_url=smollm2.url + "/v1", api_key="-") as client:
        plain = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=12, temperature=0)
        text = plain.choices[0].message.content
        assert "Paris" in text
        assert plain.usage.completion_tokens == plain.usage.total_tokens - plain.usage.prompt_tokens <= 12
        chunks = client.chat.completions.create(
            model=MODEL, messages=QUESTION, max_tokens=12, temperature=0, stream=True
        )
        assert "".join(chunk.choices[0].delta.content for chunk in chunks) == text


def test_openai_models(smollm2: Any) -> None:
    with openai.OpenAI(base_url=smollm2.url + "/v1", api_key="-") as client:
        assert [model.id for model in client.models.list()] == [MODEL]


def test_openai_sees_a_clients_mistake_as_422(smollm2: Any) -> None:
    client = openai.OpenAI(base_url=smollm2.url + "/v1", api_key="-", max_retries=0)
    with client, pytest.raises(openai.UnprocessableEntityError) as refused:
        client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=-1)
    assert refused.value.response.json() == {
        "error": "Input validation error: `temperature` must be strictly positive",
        "error_type": "validation",
    }


def test_openai_completions(smollm2: Any) -> None:
    with openai.OpenAI(base_url=smollm2.url + "/v1", api_key="-") as client:
        asked: Any = {
            "model": MODEL,
            "prompt": ["The capital of France is", "1, 2, 3,"],
            "max_tokens": 6,
            "temperature": 0,
        }
        plain = client.completions.create(**asked)
        assert "Paris" in plain.choices[0].text
        texts = ["", ""]
        for chunk in client.completions.create(**asked, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].text
        assert texts == [choice.text for choice in plain.choices]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:text_generation")
def test_text_generation_client(smollm2: Any) -> None:
    client = text_generation.Client(smollm2.url)
    plain = client.generate("The capital of France is", max_new_tokens=8, top_n_tokens=2)
    assert "Paris" in plain.generated_text
    assert [token.text for token in plain.details.tokens]
    assert len(plain.details.top_tokens) == plain.details.generated_tokens == 8
    *_, last = client.generate_stream("The capital of France is", max_new_tokens=8)
    assert last.generated_text == plain.generated_text
    assert last.details.finish_reason == "length"


@pytest.mark.filterwarnings("ignore::DeprecationWarning:text_generation")
def test_text_generation_client_sees_typed_errors(smollm2: Any) -> None:
    client = text_generation.Client(smollm2.url)
    with pytest.raises(text_generation.errors.ValidationError, match="`max_new_tokens` must be <= 1024"):
        client.generate("x", max_new_tokens=1500)
    with pytest.raises(text_generation.errors.ValidationError, match="`max_new_tokens` must be <= 1024"):
        list(client.generate_stream("x", max_new_tokens=1500))


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_as_in_the_documentation_of_tgi(smollm2: Any) -> None:
    body = json.dumps({"inputs": "The capital of France is", "parameters": {"max_new_tokens": 4}})
    command = ["curl", "-sS", "-N", "-X", "POST", "-d", body]
    typed = ["-H", "Content-Type: application/json"]

    def curl(path: str, *more: str) -> bytes:
        return subprocess.run([*command, *more, smollm2.url + path], capture_output=True, check=True, timeout=60).stdout

    plain = curl("/generate", *typed)
    assert plain.startswith(b'{"generated_text":" Paris')
    events = curl("/generate_stream", *typed).split(b"\n\n")
    assert [event[:16] for event in events] == [b'data: {"index":%d' % n for n in (1, 2, 3, 4)] + [b""]
    assert curl("/generate") == b"Expected request with `Content-Type: application/json`"
