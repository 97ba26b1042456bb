"""TGI's launcher variables and what each sets in the tree of settings.

A variable MAX_INPUT_TOKENS is also the flag --max-input-tokens. Knows names only: no values are read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Variable:
    """One launcher variable. `keys` are dotted paths of the tree; a path through `models` sets every model's value.

    `alias` is an older or foreign name of the same thing. `spellings` translates TGI's values into ours.
    """

    name: str
    keys: tuple[str, ...]
    help: str
    alias: str = ""
    spellings: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, self.alias) if self.alias else (self.name,)


def flag(name: str) -> str:
    """The command line's spelling of a variable: MAX_INPUT_TOKENS is --max-input-tokens."""
    return "--" + name.lower().replace("_", "-")


MODEL_ID = Variable(
    "MODEL_ID", (), "the model to start with: a configured id, or a checkpoint directory", alias="HF_MODEL_ID"
)

VARIABLES = (
    Variable("HOSTNAME", ("server.host",), "address to listen on (from the environment only when it is an IP address)"),
    Variable("PORT", ("server.port",), "port to listen on; 0 takes a free one"),
    Variable("API_KEY", ("server.api_key",), "bearer token every request needs (better set in the environment)"),
    Variable("ADMIN_KEY", ("server.admin_key",), "bearer token of the admin actions (better set in the environment)"),
    Variable("CORS_ALLOW_ORIGIN", ("server.cors_allow_origin",), "allowed origins, separated by commas"),
    Variable("PAYLOAD_LIMIT", ("server.payload_limit",), "largest request body in bytes"),
    Variable("GRACEFUL_TERMINATION_TIMEOUT", ("server.stop_deadline",), "seconds that running work gets when stopping"),
    Variable("COMPUTE_TYPE", ("server.compute_type",), "what the header x-compute-type says"),
    Variable("LOG_LEVEL", ("server.log_level",), "trace, debug, info, warn or error"),
    Variable("JSON_OUTPUT", ("server.json_output",), "log JSON lines: true or false"),
    Variable("OTLP_ENDPOINT", ("server.otlp_endpoint",), "collector of traces, http://host:4317; needs the extra otel"),
    Variable("OTLP_SERVICE_NAME", ("server.otlp_service_name",), "service.name of the traces"),
    Variable("MAX_CONCURRENT_REQUESTS", ("limits.max_concurrent_requests",), "requests held at once; more get 429"),
    Variable("MAX_BEST_OF", ("limits.max_best_of",), "largest best_of"),
    Variable("MAX_STOP_SEQUENCES", ("limits.max_stop_sequences",), "most stop sequences in a request"),
    Variable("MAX_TOP_N_TOKENS", ("limits.max_top_n_tokens",), "largest top_n_tokens"),
    Variable("MAX_CLIENT_BATCH_SIZE", ("limits.max_client_batch_size",), "most prompts in one request"),
    Variable(
        "MAX_INPUT_TOKENS",
        ("limits.max_input_tokens", "models.max_input_tokens"),
        "longest prompt in tokens; 0 is what the model's slots hold",
        alias="MAX_INPUT_LENGTH",
    ),
    Variable(
        "MAX_TOTAL_TOKENS",
        ("limits.max_total_tokens", "models.max_total_tokens"),
        "most tokens of prompt and answer together; 0 is what the model's slots hold",
    ),
    Variable(
        "DISABLE_GRAMMAR_SUPPORT",
        ("limits.grammar",),
        "refuse grammars: true or false",
        spellings={"true": "false", "1": "false", "false": "true", "0": "true"},
    ),
    Variable("VALIDATION_WORKERS", ("limits.validation_workers",), "threads that tokenise"),
    Variable("MAX_BATCH_SIZE", ("models.device.slots",), "slots: sequences a model decodes at once"),
    Variable("HF_NUM_CORES", ("models.device.tp_degree",), "NeuronCores that share a model"),
    Variable(
        "HF_AUTO_CAST_TYPE",
        ("models.device.amp",),
        "number type on Neuron: bf16, fp16 or fp32",
        spellings={"bf16": "bf16", "fp16": "f16", "fp32": "f32"},
    ),
)

# Launcher variables of TGI and of its SageMaker image that have no counterpart here; one that is given is named in a
# warning. The hub's own (HF_TOKEN, HF_HUB_OFFLINE, ...) are not among them: many machines set them for other programs.
WITHOUT_EFFECT = (
    "REVISION",
    "MAX_BATCH_PREFILL_TOKENS",
    "MAX_BATCH_TOTAL_TOKENS",
    "WAITING_SERVED_RATIO",
    "MAX_WAITING_TOKENS",
    "TOKENIZER_CONFIG_PATH",
    "TRUST_REMOTE_CODE",
    "DTYPE",
    "QUANTIZE",
    "KV_CACHE_DTYPE",
    "NUM_SHARD",
    "SHARDED",
    "ROPE_SCALING",
    "ROPE_FACTOR",
    "CUDA_GRAPHS",
    "CUDA_MEMORY_FRACTION",
    "DISABLE_CUSTOM_KERNELS",
    "SPECULATE",
    "LORA_ADAPTERS",
    "ENABLE_PREFILL_LOGPROBS",
    "MAX_IMAGE_FETCH_SIZE",
    "LOG_COLORIZE",
    "PROMETHEUS_PORT",
    "HUGGINGFACE_HUB_CACHE",
    "WEIGHTS_CACHE_OVERRIDE",
    "SHARD_UDS_PATH",
    "MASTER_ADDR",
    "MASTER_PORT",
    "USAGE_STATS",
    "NGROK",
    "NGROK_AUTHTOKEN",
    "NGROK_EDGE",
    "WATERMARK_GAMMA",
    "WATERMARK_DELTA",
    "HF_MODEL_REVISION",
    "HF_MODEL_QUANTIZE",
    "HF_MODEL_TRUST_REMOTE_CODE",
    "SM_NUM_GPUS",
)
