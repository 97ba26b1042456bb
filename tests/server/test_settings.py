"""The configuration: defaults, the file, TGI's variables over it, flags over both; and what each refusal says."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from models.cpu.embedded import embedded_directory
from models.protocol import CpuOptions, NeuronOptions, SimulatedOptions
from server.configuration import default_config, load_settings, without_effect
from server.errors import ConfigurationError
from server.settings import LimitSettings, ServerSettings, Settings

CONFIGS = default_config().parent

MODEL = """
[[models]]
id = "org/first"
path = "first"
"""
TWO_MODELS = """
[[models]]
id = "org/first"
path = "first"
[models.device]
kind = "simulated"
slots = 4
n_positions = 100

[[models]]
id = "org/second"
path = "/elsewhere/second"
max_total_tokens = 50
[models.device]
kind = "neuron"
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "server.toml"
        path.write_text(text)
        return path

    return write


def refusal(path: Path | None, environment=(), flags=()) -> str:
    with pytest.raises(ConfigurationError) as error:
        load_settings(path, dict(environment), dict(flags))
    return error.value.text


class TestFile:
    def test_left_out_keys_have_their_defaults(self, write) -> None:
        settings = load_settings(write(MODEL), {}, {})
        assert settings == Settings(models=settings.models)
        assert settings.server == ServerSettings(host="127.0.0.1", port=8080)
        assert settings.models[0].device == CpuOptions()

    def test_every_section_is_read(self, write) -> None:
        settings = load_settings(
            write(
                "[server]\nport = 0\nstop_deadline = 5\n[limits]\nmax_best_of = 3\n[worker]\nrestarts = 0\n"
                + TWO_MODELS
            ),
            {},
            {},
        )
        assert settings.server == ServerSettings(port=0, stop_deadline=5.0)
        assert settings.limits == LimitSettings(max_best_of=3)
        assert settings.worker.restarts == 0
        assert [model.device for model in settings.models] == [
            SimulatedOptions(slots=4, n_positions=100),
            NeuronOptions(),
        ]

    def test_without_a_file_the_packaged_one_serves_the_embedded_model(self, monkeypatch, tmp_path: Path) -> None:
        monkeypatch.setenv("NEURONX_SERVE_CACHE", str(tmp_path))
        (model,) = load_settings(None, {"NEURONX_SERVE_CACHE": str(tmp_path)}, {}).models
        assert model.id == "HuggingFaceTB/SmolLM2-135M-Instruct"
        assert model.path == str(embedded_directory())

    def test_the_inf2_file_names_three_models_on_two_cores(self) -> None:
        settings = load_settings(CONFIGS / "inf2.toml", {}, {})
        devices = [model.device for model in settings.models]
        assert all(isinstance(device, NeuronOptions) and device.tp_degree == 2 for device in devices)
        assert [device.slots for device in devices] == [12, 12, 4]

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("[server]\nprot = 1\n", "server.prot: unknown key. Known here: host, port,"),
            ("[sever]\n", "sever: unknown key. Known here: models, server,"),
            ("[server]\nport = 65536\n", "server.port = 65536: allowed is a whole number from 0 to 65535"),
            ("[server]\nport = '80'\n", "server.port = '80': allowed is a whole number from 0 to 65535"),
            ("[server]\nport = true\n", "server.port = True: allowed is a whole number"),
            ("[server]\nhost = ''\n", "server.host = '': allowed is a text that is not empty"),
            ("[server]\njson_output = 1\n", "server.json_output = 1: allowed is true or false"),
            ("[server]\nwrite_timeout = 0\n", "server.write_timeout = 0: allowed is a number above 0"),
            ("[server]\nwrite_timeout = nan\n", "server.write_timeout = nan: allowed is a number above 0"),
            ("[server]\ncors_allow_origin = '*'\n", "server.cors_allow_origin = '*': allowed is a list, each a text"),
            ("[server]\nlog_level = 'loud'\n", "server.log_level = 'loud': allowed is 'trace' or 'debug' or"),
            ("[limits]\nvalidation_workers = 0\n", "limits.validation_workers = 0: allowed is a whole number from 1"),
            ("server = 1\n", "server = 1: allowed is a table"),
            ("[server\n", "is not a TOML file"),
            ("[server]\napi_key = 12345\n", "server.api_key = (not shown): allowed is a text"),
        ],
    )
    def test_a_bad_file_is_refused_with_file_key_value_and_what_is_allowed(self, write, text: str, says: str) -> None:
        path = write(text + MODEL)
        text = refusal(path)
        assert text.startswith(f"{path}: ")
        assert says in text

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "models: missing"),
            ("models = []", "models = []: allowed is at least one [[models]] table"),
            ("[models]\nid = 'a'", "models = {'id': 'a'}: allowed is tables, each under [[models]]"),
            ("[[models]]\nid = 'a'", "models[0].path: missing"),
            (MODEL + "family = 'bloom'", "models[0].family = 'bloom': allowed is 'auto' or 'llama3' or"),
            (MODEL + "famly = 'x'", "models[0].famly: unknown key. Known here: id, path, family,"),
            (MODEL + MODEL, "models[1].id = 'org/first': allowed is an id that no other model has"),
            (MODEL.replace("org/first", "/first"), "models[0].id = '/first': allowed is names joined by '/'"),
            (MODEL.replace("org/first", "events"), "models[0].id = 'events': allowed is another id"),
            (MODEL.replace('"first"', '"cache:../x"'), "models.path = 'cache:../x': allowed is cache:NAME"),
            (MODEL + "[models.device]\nslots = 1", "models[0].device.kind = None: allowed is 'cpu' or 'neuron' or"),
            (MODEL + "[models.device]\nkind = 'tpu'", "models[0].device.kind = 'tpu': allowed is 'cpu' or 'neuron' or"),
            (MODEL + "[models.device]\nkind = 'cpu'\ntp_degree = 2", "models[0].device.tp_degree: unknown key"),
            (MODEL + "[models.device]\nkind = 'cpu'\nslots = 0", "models[0].device.slots = 0: allowed is a"),
            (MODEL + "[models.device]\nkind = 'cpu'\ndtype = 'f8'", "dtype = 'f8': allowed is 'auto' or 'float32'"),
        ],
    )
    def test_a_bad_model_is_refused(self, write, text: str, says: str) -> None:
        assert says in refusal(write(text))

    def test_a_missing_file_is_refused(self, tmp_path: Path) -> None:
        assert refusal(tmp_path / "none.toml") == f"{tmp_path / 'none.toml'}: cannot be read: No such file or directory"


class TestModelPaths:
    def located(self, write, path: str, **environment: str) -> str:
        return load_settings(write(MODEL.replace('"first"', f'"{path}"')), environment, {}).models[0].path

    def test_a_relative_path_starts_at_the_file(self, write, tmp_path: Path) -> None:
        assert self.located(write, "some/model") == str(tmp_path / "some/model")

    def test_a_tilde_is_the_home(self, write) -> None:
        assert self.located(write, "~/model") == str(Path.home() / "model")

    def test_cache_is_the_model_cache(self, write) -> None:
        assert self.located(write, "cache:tiny", NEURONX_SERVE_CACHE="/big") == "/big/models/tiny"
        assert self.located(write, "cache:tiny", XDG_CACHE_HOME="/x") == "/x/neuronx-serve/models/tiny"
        assert self.located(write, "cache:tiny") == str(Path.home() / ".cache/neuronx-serve/models/tiny")

    def test_an_interpreter_with_a_slash_starts_at_the_file_too(self, write, tmp_path: Path) -> None:
        settings = load_settings(write(MODEL + 'python = "env/bin/python"'), {}, {})
        assert settings.models[0].python == str(tmp_path / "env/bin/python")


class TestOverrides:
    @pytest.mark.parametrize(
        ("name", "value", "key", "read"),
        [
            ("PORT", "9000", "server.port", 9000),
            ("HOSTNAME", "0.0.0.0", "server.host", "0.0.0.0"),
            ("HOSTNAME", "::1", "server.host", "::1"),
            ("API_KEY", "secret", "server.api_key", "secret"),
            ("CORS_ALLOW_ORIGIN", "http://a, http://b", "server.cors_allow_origin", ("http://a", "http://b")),
            ("PAYLOAD_LIMIT", "1000", "server.payload_limit", 1000),
            ("GRACEFUL_TERMINATION_TIMEOUT", "30", "server.stop_deadline", 30.0),
            ("JSON_OUTPUT", "true", "server.json_output", True),
            ("LOG_LEVEL", "debug", "server.log_level", "debug"),
            ("MAX_CONCURRENT_REQUESTS", "7", "limits.max_concurrent_requests", 7),
            ("MAX_BEST_OF", "2", "limits.max_best_of", 2),
            ("MAX_STOP_SEQUENCES", "9", "limits.max_stop_sequences", 9),
            ("MAX_TOP_N_TOKENS", "0", "limits.max_top_n_tokens", 0),
            ("MAX_CLIENT_BATCH_SIZE", "1", "limits.max_client_batch_size", 1),
            ("VALIDATION_WORKERS", "4", "limits.validation_workers", 4),
            ("MAX_INPUT_TOKENS", "20", "limits.max_input_tokens", 20),
            ("MAX_INPUT_LENGTH", "20", "limits.max_input_tokens", 20),
            ("MAX_TOTAL_TOKENS", "60", "limits.max_total_tokens", 60),
        ],
    )
    def test_a_variable_and_its_flag_set_the_same_key(self, write, name: str, value: str, key: str, read) -> None:
        section, field = key.split(".")
        for settings in (
            load_settings(write(TWO_MODELS), {name: value}, {}),
            load_settings(write(TWO_MODELS), {}, {name: value}),
        ):
            assert getattr(getattr(settings, section), field) == read

    def test_the_flag_wins_over_the_environment_and_that_over_the_file(self, write) -> None:
        path = write("[server]\nport = 1\n" + MODEL)
        assert load_settings(path, {}, {}).server.port == 1
        assert load_settings(path, {"PORT": "2"}, {}).server.port == 2
        assert load_settings(path, {"PORT": "2"}, {"PORT": "3"}).server.port == 3

    def test_token_limits_replace_those_of_the_models_too(self, write) -> None:
        settings = load_settings(write(TWO_MODELS), {"MAX_TOTAL_TOKENS": "60"}, {})
        assert [model.max_total_tokens for model in settings.models] == [60, 60]

    def test_the_batch_size_is_every_model_s_slots(self, write) -> None:
        settings = load_settings(write(TWO_MODELS), {"MAX_BATCH_SIZE": "3"}, {})
        assert [model.device.slots for model in settings.models] == [3, 3]

    def test_cores_and_number_type_concern_neuron_models_only(self, write) -> None:
        settings = load_settings(write(TWO_MODELS), {"HF_NUM_CORES": "1", "HF_AUTO_CAST_TYPE": "fp16"}, {})
        assert settings.models[0].device == SimulatedOptions(slots=4, n_positions=100)
        assert settings.models[1].device == NeuronOptions(tp_degree=1, amp="f16")

    def test_a_host_name_in_the_environment_that_is_no_address_is_a_container_s_id(self, write) -> None:
        assert load_settings(write(MODEL), {"HOSTNAME": "3f2a9c"}, {}).server.host == "127.0.0.1"
        assert load_settings(write(MODEL), {}, {"HOSTNAME": "localhost"}).server.host == "localhost"

    def test_an_empty_variable_is_not_set(self, write) -> None:
        assert load_settings(write(MODEL), {"PORT": "", "API_KEY": ""}, {}) == load_settings(write(MODEL), {}, {})

    @pytest.mark.parametrize(
        ("name", "value", "allowed"),
        [
            ("PORT", "http", "a whole number from 0 to 65535"),
            ("PORT", "-1", "a whole number from 0 to 65535"),
            ("MAX_CONCURRENT_REQUESTS", "0", "a whole number from 1"),
            ("JSON_OUTPUT", "maybe", "true or false"),
            ("HF_AUTO_CAST_TYPE", "int8", "bf16 or fp16 or fp32"),
        ],
    )
    def test_a_bad_value_is_refused_with_its_origin(self, write, name: str, value: str, allowed: str) -> None:
        path = write(TWO_MODELS)
        assert refusal(path, {name: value}) == f"environment variable {name} = {value!r}: allowed is {allowed}"
        flag = "--" + name.lower().replace("_", "-")
        assert refusal(path, flags={name: value}) == f"flag {flag} = {value!r}: allowed is {allowed}"

    @pytest.mark.parametrize("where", [0, 1])
    def test_old_and_new_name_together_are_refused(self, write, where: int) -> None:
        given = [{"MAX_INPUT_TOKENS": "1"}, {}]
        given[where] = given[where] | {"MAX_INPUT_LENGTH": "1"}
        assert "MAX_INPUT_TOKENS and MAX_INPUT_LENGTH are two names" in refusal(write(MODEL), *given)

    def test_what_does_nothing_here_is_told(self, write) -> None:
        settings = load_settings(write(MODEL), {}, {})
        assert without_effect(
            settings, {"QUANTIZE": "awq", "PORT": "1", "HF_NUM_CORES": "2"}, {"DTYPE": "float16"}
        ) == (
            "environment variable HF_NUM_CORES",
            "flag --dtype",
            "environment variable QUANTIZE",
        )
        assert without_effect(settings, {"PORT": "1", "PATH": "/bin"}, {}) == ()


class TestCollector:
    """OTLP_ENDPOINT is the address of a collector, with a scheme as TGI wants it."""

    @pytest.mark.parametrize(
        "endpoint", ["http://localhost:4317", "https://otel.example", "http://10.0.0.1:4317/", "http://[::1]:4317"]
    )
    def test_addresses(self, write, endpoint: str) -> None:
        assert load_settings(write(MODEL), {"OTLP_ENDPOINT": endpoint}, {}).server.otlp_endpoint == endpoint

    @pytest.mark.parametrize(
        "endpoint", ["localhost:4317", "grpc://a:1", "http://", "http://a:b", "http://a/v1/traces"]
    )
    def test_others_are_refused(self, write, endpoint: str) -> None:
        assert refusal(write(MODEL), {"OTLP_ENDPOINT": endpoint}) == (
            f"environment variable OTLP_ENDPOINT: server.otlp_endpoint = {endpoint!r}: allowed is "
            "http://HOST:PORT or https://HOST:PORT of an OTLP/gRPC collector, as http://127.0.0.1:4317"
        )


class TestLengths:
    """A prompt must be shorter than the total, and the total must fit a slot (here 2048 positions)."""

    @pytest.mark.parametrize(
        ("limits", "environment", "says"),
        [
            ("max_total_tokens = 2049", {}, "max_total_tokens = 2049: allowed is at most the n_positions of the slots"),
            (
                "max_input_tokens = 2048",
                {},
                "max_input_tokens = 2048: allowed is less than models[0].device.n_positions",
            ),
            ("max_input_tokens = 9\nmax_total_tokens = 9", {}, "max_input_tokens = 9: allowed is less than"),
            (
                "",
                {"MAX_TOTAL_TOKENS": "4096"},
                "environment variable MAX_TOTAL_TOKENS: models[0].max_total_tokens = 4096",
            ),
            ("max_total_tokens = 50", {"MAX_INPUT_TOKENS": "60"}, "environment variable MAX_INPUT_TOKENS: "),
        ],
    )
    def test_refused(self, write, limits: str, environment, says: str) -> None:
        assert says in refusal(write(f"[limits]\n{limits}\n{MODEL}"), environment)
        if limits:
            assert says in refusal(write(f"{MODEL}{limits}\n"), environment)

    def test_allowed(self, write) -> None:
        settings = load_settings(write(f"[limits]\nmax_input_tokens = 8\nmax_total_tokens = 2048\n{MODEL}"), {}, {})
        assert settings.limits == LimitSettings(max_input_tokens=8, max_total_tokens=2048)


class TestModelId:
    def test_a_configured_id_becomes_the_first(self, write) -> None:
        settings = load_settings(write(TWO_MODELS), {"MODEL_ID": "org/second"}, {})
        assert [model.id for model in settings.models] == ["org/second", "org/first"]

    def test_sagemaker_s_name_for_it(self, write) -> None:
        settings = load_settings(write(TWO_MODELS), {"HF_MODEL_ID": "org/second"}, {})
        assert settings.models[0].id == "org/second"

    def test_a_directory_becomes_a_model_on_the_first_one_s_device(self, write, tmp_path: Path) -> None:
        directory = tmp_path / "checkpoints" / "My-Llama"
        directory.mkdir(parents=True)
        settings = load_settings(write(TWO_MODELS), {}, {"MODEL_ID": str(directory)})
        assert [model.id for model in settings.models] == ["My-Llama", "org/first", "org/second"]
        assert settings.models[0] == replace(settings.models[1], id="My-Llama", path=str(directory))

    def test_anything_else_is_refused_since_nothing_is_downloaded(self, write) -> None:
        text = refusal(write(TWO_MODELS), {"MODEL_ID": "bigscience/bloom-560m"})
        assert text.startswith("environment variable MODEL_ID = 'bigscience/bloom-560m': neither a configured model")
        assert "Nothing is downloaded from a hub: give a checkpoint directory" in text
