"""@huggingface/inference under node, both generations that are in use (wire contract, section 17). Long: it installs
them from the registry."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("npm") is None, reason="node and npm are not installed"),
]

GENERATION_2 = """
import { HfInference } from "@huggingface/inference";
const endpoint = new HfInference("hf_none").endpoint(process.argv[2]);
"""
GENERATION_4 = """
import { InferenceClient } from "@huggingface/inference";
const endpoint = new InferenceClient("hf_none", { endpointUrl: process.argv[2] });
"""
REST = """
const parameters = { max_new_tokens: 8, return_full_text: false };
const model = process.argv[3] === "2" ? "tgi" : undefined;  // without a name 2.x asks the hub for one
const messages = [{ role: "user", content: "What is the capital of France?" }];
const chat = { model, messages, max_tokens: 12, temperature: 0 };
const inputs = "The capital of France is";
const seen = { generated: (await endpoint.textGeneration({ model, inputs, parameters })).generated_text };
if (process.argv[3] === "2") {
  seen.streamed = "";
  for await (const event of endpoint.textGenerationStream({ model, inputs, parameters })) {
    seen.streamed += event.token.text;
  }
}
seen.chat = (await endpoint.chatCompletion(chat)).choices[0].message.content;
seen.chatStreamed = "";
for await (const chunk of endpoint.chatCompletionStream(chat)) seen.chatStreamed += chunk.choices[0].delta.content;
try {
  await endpoint.chatCompletion({ ...chat, temperature: -1 });
} catch (error) {
  seen.error = `${error}`;
}
console.log(JSON.stringify(seen));
"""


def run(directory: Path, version: str, script: str, url: str) -> Any:
    """What a script says that uses one version of the package."""
    install = ["npm", "install", "--no-audit", "--no-fund", f"@huggingface/inference@{version}"]
    subprocess.run(install, cwd=directory, check=True, capture_output=True, timeout=300)
    (directory / "client.mjs").write_text(script + REST)
    command = ["node", "client.mjs", url, version[0]]
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize(("version", "script"), [("2", GENERATION_2), ("4", GENERATION_4)], ids=["17-2.x", "17-4.x"])
def test_huggingface_inference(smollm2: Any, tmp_path: Path, version: str, script: str) -> None:
    seen = run(tmp_path, version, script, smollm2.url)
    assert seen["chat"] == seen["chatStreamed"]
    assert "Paris" in seen["chat"]
    assert seen["error"]
    if version == "2":
        assert "Paris" in seen["generated"]
        assert seen["streamed"] == seen["generated"]
    else:  # it asks /v1/completions, without a temperature: sampled
        assert seen["generated"]
