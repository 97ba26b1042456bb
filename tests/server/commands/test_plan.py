"""`neuronx-serve plan` as its user meets it, and the two Inferentia configurations that the package brings."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from models.planner.hardware import GIB
from models.planner.shapes import published_spec
from server.commands import plan
from server.configuration import load_settings
from server.errors import ConfigurationError
from server.variables import MODEL_ID, VARIABLES

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
LLAMA, MISTRAL, CODELLAMA = (
    "meta-llama/Meta-Llama-3-8B-Instruct",
    "mistralai/Mistral-7B-Instruct-v0.2",
    "codellama/CodeLlama-7b-Instruct-hf",
)
ONE_MODEL = """
[[models]]
id = "{id}"
path = "{path}"
[models.device]
{device}
"""


@dataclass(frozen=True)
class Printed:
    exit_code: int
    text: str


Plan = Callable[..., Printed]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Plan:
    """printed(config, *flags): what the command prints and its exit code."""

    def call(config: Path, *flags: str) -> Printed:
        parser = argparse.ArgumentParser()
        parser.add_argument("--config", type=Path)
        plan.add_flags(parser)
        exit_code = plan.run(parser.parse_args(["--config", str(config), *flags]))
        return Printed(exit_code, capsys.readouterr().out)

    return call


@pytest.fixture
def one_model(tmp_path: Path) -> Callable[..., Path]:
    def write(device: str, model_id: str = LLAMA, path: str = "absent") -> Path:
        config = tmp_path / "server.toml"
        config.write_text(ONE_MODEL.format(id=model_id, path=path, device=device))
        return config

    return write


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in (MODEL_ID, *VARIABLES):
        for name in variable.names:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NEURONX_SERVE_CACHE", str(tmp_path / "cache"))


def cells(document: dict[str, Any], model: str, name: str) -> dict[str, list[dict[str, Any]]]:
    """The figures of a row, by column."""
    table = next(entry["table"] for entry in document["models"] if entry["id"] == model)
    row = next(row for row in table["rows"] if row["name"] == name)
    return dict(zip(table["columns"], row["cells"], strict=True))


class TestTheConfigurationsOfThePackage:
    @pytest.mark.parametrize(
        ("file", "models"),
        [("inf2.toml", (LLAMA, MISTRAL, CODELLAMA)), ("inf2-residents.toml", (LLAMA, MISTRAL))],
    )
    def test_load_and_fit_without_any_checkpoint(self, printed: Plan, file: str, models: tuple[str, ...]) -> None:
        assert tuple(model.id for model in load_settings(CONFIGS / file, os.environ, {}).models) == models
        answer = printed(CONFIGS / file)
        assert answer.exit_code == 0
        for model in models:
            assert f"{model}: fits\n" in answer.text

    def test_the_three_hold_weights_and_cache_to_11_gib_a_core(self, printed: Plan) -> None:
        document = json.loads(printed(CONFIGS / "inf2.toml", "--json").text)
        for model in (LLAMA, MISTRAL, CODELLAMA):
            weights, cache, everything = (
                cells(document, model, f"a core: {name}")["bf16"][0]["low"]
                for name in ("weights", "KV cache", "all, of 15.97")
            )
            assert weights + cache <= 11
            assert everything < 15

    def test_the_three_are_exchanged_and_the_two_are_resident(self, printed: Plan) -> None:
        assert "resident" not in printed(CONFIGS / "inf2.toml").text
        assert printed(CONFIGS / "inf2-residents.toml").text.endswith(
            "These 2 models can be resident together, each on its own cores.\n"
        )

    def test_the_residents_have_cores_of_their_own(self) -> None:
        models = load_settings(CONFIGS / "inf2-residents.toml", os.environ, {}).models
        assert sorted(model.device.cores for model in models) == ["0", "1"]


class TestText:
    def test_stands_the_published_figures_beside_the_forecast(self, printed: Plan) -> None:
        text = printed(CONFIGS / "inf2.toml", "--model", LLAMA).text
        assert "inf2.xlarge: 2 NeuronCores, $0.7582 an hour. The load: 10 users, 104 + 500 tokens a request" in text
        for figure in ("P 60.0", "P 32.0", "P 18.0", "P 1.16"):
            assert figure in text
        assert MISTRAL not in text

    def test_marks_every_figure(self, printed: Plan) -> None:
        lines = printed(CONFIGS / "inf2.toml", "--model", LLAMA).text.splitlines()
        start = next(i for i, line in enumerate(lines) if line.strip().startswith("bf16"))
        rows = lines[start + 1 :]
        assert len(rows) == 18
        for row in rows:
            figures = row[plan._NAME_WIDTH :].replace(" to ", "-").split()
            assert set(figures[::2]) <= {"=", "~", "P"}
            assert len(figures) % 2 == 0

    def test_says_where_the_shapes_come_from(self, printed: Plan, tmp_path: Path) -> None:
        text = printed(CONFIGS / "inf2.toml", "--model", LLAMA).text
        missing = tmp_path / "cache" / "models" / "Meta-Llama-3-8B-Instruct"
        assert f"shapes: as published ({missing} does not exist yet)" in text

    def test_a_checkpoint_that_is_there_is_read(
        self, printed: Plan, one_model: Callable[..., Path], tmp_path: Path
    ) -> None:
        (tmp_path / "config.json").write_text(
            json.dumps(
                {
                    "model_type": "llama",
                    "hidden_size": 64,
                    "intermediate_size": 128,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "vocab_size": 256,
                    "max_position_embeddings": 512,
                }
            )
        )
        text = printed(one_model('kind = "cpu"\nn_positions = 512', "mine", str(tmp_path))).text
        assert f"shapes: {tmp_path}/config.json" in text
        assert "CPU, 8 slots x 512 positions" in text
        assert (
            printed(one_model('kind = "cpu"\nn_positions = 512'), "--model", str(tmp_path)).text.count("shapes:") == 1
        )

    def test_what_does_not_fit_is_said_first_and_by_the_exit_code(
        self, printed: Plan, one_model: Callable[..., Path]
    ) -> None:
        answer = printed(one_model('kind = "neuron"\nslots = 32'))
        assert answer.exit_code == 1
        assert f"{LLAMA}: DOES NOT FIT: the model takes 18.7 GiB of the 15.97" in answer.text
        assert "It fits with slots = 16" in answer.text
        assert "bf16 (does not fit)" in answer.text

    def test_a_tight_fit_is_called_one(self, printed: Plan, one_model: Callable[..., Path]) -> None:
        answer = printed(one_model('kind = "neuron"\nslots = 17'))
        assert answer.exit_code == 0
        assert f"{LLAMA}: fits, but tightly" in answer.text

    def test_larger_instances(self, printed: Plan, one_model: Callable[..., Path]) -> None:
        eight = printed(one_model('kind = "neuron"\ntp_degree = 8'))
        assert eight.text.startswith("inf2.24xlarge: 12 NeuronCores")
        small = printed(one_model('kind = "neuron"\ntp_degree = 8'), "--instance", "inf2.8xlarge")
        assert small.exit_code == 1
        assert "tp_degree is 8, and inf2.8xlarge has 2 NeuronCores" in small.text

    def test_a_simulated_device_has_nothing_to_plan(self, printed: Plan, one_model: Callable[..., Path]) -> None:
        answer = printed(one_model('kind = "simulated"'))
        assert answer.exit_code == 0
        assert answer.text.endswith(f"{LLAMA}: a simulated device, nothing to plan\n")


class TestJson:
    def test_has_the_marks_and_the_ranges(self, printed: Plan) -> None:
        document = json.loads(printed(CONFIGS / "inf2.toml", "--json").text)
        step = cells(document, LLAMA, "decode step, bucket 1024")
        floor, expected = step["bf16"]
        assert floor == {"mark": "arithmetic", "low": floor["low"], "high": floor["low"]}
        assert expected["mark"] == "hardware"
        assert floor["low"] < expected["low"] < expected["high"]
        assert step["int8"][0]["low"] < floor["low"]
        assert step["published"] == []
        assert cells(document, LLAMA, "requests")["published"] == [{"mark": "published", "low": 18.0, "high": 18.0}]

    def test_says_what_it_assumes(self, printed: Plan) -> None:
        document = json.loads(printed(CONFIGS / "inf2.toml", "--json", "--users", "4", "--disk-rate", "250").text)
        assert document["instance"]["name"] == "inf2.xlarge"
        assert document["workload"] == {"prompt_tokens": 104, "new_tokens": 500, "users": 4}
        assert document["disk_bytes_per_s"] == 250e6
        assert cells(document, LLAMA, "load, disk of 250 MB/s")["bf16"][0]["low"] == pytest.approx(64.2, abs=0.1)

    def test_carries_the_refusal(self, printed: Plan, one_model: Callable[..., Path]) -> None:
        answer = printed(one_model('kind = "neuron"\nslots = 32'), "--json")
        assert answer.exit_code == 1
        model = json.loads(answer.text)["models"][0]
        assert model["refusal"].startswith("the model takes 18.7 GiB")
        assert model["table"]["impossible"] == ["bf16"]

    def test_a_load_that_no_slot_holds_has_no_forecast(self, printed: Plan) -> None:
        document = json.loads(printed(CONFIGS / "inf2.toml", "--json", "--new-tokens", "4000").text)
        names = [row["name"] for row in document["models"][0]["table"]["rows"]]
        assert "decode step, bucket 1024" in names
        assert "requests" not in names


class TestCpu:
    def test_is_held_against_the_memory_of_this_machine(
        self, printed: Plan, one_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(plan, "available_bytes", lambda: 26 * GIB)
        answer = printed(one_model('kind = "cpu"'))
        assert answer.exit_code == 1
        assert 'It fits with dtype = "bfloat16"' in answer.text
        assert printed(one_model('kind = "cpu"\ndtype = "bfloat16"')).exit_code == 0


class TestASlidingWindow:
    def test_cuts_the_slots_and_the_plan_says_so(
        self, printed: Plan, one_model: Callable[..., Path], tmp_path: Path
    ) -> None:
        shapes = dataclasses.asdict(published_spec(MISTRAL))
        names = {"layers": "num_hidden_layers", "heads": "num_attention_heads", "kv_heads": "num_key_value_heads"}
        config = {names.get(name, name): value for name, value in shapes.items() if name != "architecture"}
        (tmp_path / "config.json").write_text(json.dumps({**config, "sliding_window": 4096}))
        answer = printed(one_model('kind = "neuron"\nslots = 4\nn_positions = 8192\ntoken_buckets = [8192]', path="."))
        assert "4 slots x 4096 positions, context buckets 256 1024 2048, token buckets 4096" in answer.text
        assert "  n_positions 8192 is cut to the model's sliding_window, 4096" in answer.text


class TestRefusals:
    def test_an_unknown_model_is_refused_with_the_configured_ones(self, printed: Plan) -> None:
        with pytest.raises(ConfigurationError, match=r"neither a configured model \(meta-llama/"):
            printed(CONFIGS / "inf2.toml", "--model", "gpt-5")

    def test_an_absent_checkpoint_of_unknown_shapes_is_refused(
        self, printed: Plan, one_model: Callable[..., Path]
    ) -> None:
        with pytest.raises(ConfigurationError, match=r"mine: .*config\.json does not exist"):
            printed(one_model('kind = "cpu"', "mine"))

    def test_a_degree_beyond_every_instance_is_refused(self, printed: Plan, one_model: Callable[..., Path]) -> None:
        with pytest.raises(ConfigurationError, match=r"tp_degree = 32: .* the largest has 24"):
            printed(one_model('kind = "neuron"\ntp_degree = 32'))

    @pytest.mark.parametrize("flags", [("--users", "0"), ("--disk-rate", "0"), ("--new-tokens", "many")])
    def test_an_impossible_assumption_is_wrong_usage(self, printed: Plan, flags: tuple[str, str]) -> None:
        with pytest.raises(SystemExit) as ended:
            printed(CONFIGS / "inf2.toml", *flags)
        assert ended.value.code == 2
