#!/usr/bin/env bash
# What the image runs: `serve` alone is SageMaker's call, anything else are arguments of neuronx-serve.
#
# SageMaker gives its container variables and no arguments, and calls /ping and /invocations at port 8080. The variables
# are those of TGI's image: HF_MODEL_ID, HF_MODEL_REVISION, SM_NUM_GPUS, and all that neuronx-serve itself reads. Ours is
# NEURONX_SERVE_ARTIFACTS, where the compiled artifacts are (default: artifacts/ in the model's directory).
set -euo pipefail

fail() {
    echo "entrypoint: $*" >&2
    exit 78 # EX_CONFIG
}

config=${NEURONX_SERVE_CONFIG:?names the configuration of this image}
cache=${NEURONX_SERVE_CACHE:?names the directory of models and artifacts}
source_directory=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)

if [[ $* != serve ]]; then
    if [[ ${1-} == serve ]]; then
        shift
        set -- serve --config "$config" "$@" # one that is given behind it wins
    fi
    exec neuronx-serve "$@"
fi

[[ ${HF_MODEL_ID-} ]] || fail "HF_MODEL_ID must be set: OWNER/NAME of the Hugging Face Hub, or a directory as" \
    "/opt/ml/model. (To serve what $config names, without SageMaker: serve --hostname 0.0.0.0)"
if [[ ${SM_NUM_GPUS-} ]]; then
    export HF_NUM_CORES=$SM_NUM_GPUS # tp_degree
fi

if [[ -d $HF_MODEL_ID ]]; then
    directory=$(cd "$HF_MODEL_ID" && pwd -P)
    model=${directory##*/}=$directory
    # Packed as a model.tar.gz whose weights lie in a folder of it, or not at all.
    [[ -e $directory/config.json ]] || fail "HF_MODEL_ID = $HF_MODEL_ID: that directory holds no config.json"
else
    directory=$cache/models/${HF_MODEL_ID##*/}
    model=$HF_MODEL_ID
    if [[ ${HF_MODEL_REVISION-} || ! -e $directory/config.json ]]; then
        neuronx-serve models pull "$HF_MODEL_ID" ${HF_MODEL_REVISION:+--revision "$HF_MODEL_REVISION"}
    fi
fi

if [[ -z ${NEURONX_SERVE_ARTIFACTS-} && -d $directory/artifacts ]]; then
    NEURONX_SERVE_ARTIFACTS=$directory/artifacts
fi
if [[ ${NEURONX_SERVE_ARTIFACTS-} ]]; then
    neuronx-serve artifacts pull "$NEURONX_SERVE_ARTIFACTS"
fi

chosen=$(mktemp -d)/serve.toml
"$source_directory/scripts/choose-models" "$config" "$model" >"$chosen"
host=0.0.0.0
if [[ ${HOSTNAME-} =~ ^[0-9]+(\.[0-9]+){3}$ ]]; then
    host=$HOSTNAME # an address, as TGI's variable; else it is the container's name
fi
unset HF_MODEL_ID MODEL_ID HF_MODEL_REVISION REVISION SM_NUM_GPUS # all of it is done
exec neuronx-serve serve --config "$chosen" --hostname "$host" --port "${SAGEMAKER_BIND_TO_PORT:-8080}"
