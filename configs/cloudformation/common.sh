# shellcheck shell=bash
# Sourced by server.sh and builder.sh, which user-data.sh runs on an instance of the stack. The template's parameters are
# in variables of the environment: models, artifacts, token_secret, ... in small letters.
set -euo pipefail

root=${NEURONX_SERVE_ROOT-} # for tests: a directory in the place of /
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
configuration=$root/etc/neuronx-serve/inf2.toml
cache=$root/var/cache/neuronx-serve
neuronx_serve=$root/usr/local/bin/neuronx-serve

say() {
    echo "== $(date -u +%T) $*"
}

# The last line of the log: user-data.sh tells it to the stack.
fail() {
    say "failed: $*"
    exit 1
}

# A command of the service's user; what is exported here is there too.
as_service() {
    HOME=$root/var/lib/neuronx-serve NEURONX_SERVE_CACHE=$cache runuser -u neuronx-serve -- "$@"
}

# install_software ARGUMENTS of scripts/install-inf2
install_software() {
    say "installing"
    "$checkout/scripts/install-inf2" ${root:+--root "$root"} "$@" || fail "scripts/install-inf2 ended with $?"
}

# The parameter `Models` as an array `ids`, and as the configuration of the machine.
choose_models() {
    local chosen
    IFS=', ' read -ra ids <<<"${models:?}"
    chosen=$("$checkout/scripts/choose-models" "$checkout/configs/inf2.toml" "${ids[@]}") || fail "Models = $models"
    printf '%s\n' "$chosen" | install -D -m 644 /dev/stdin "$configuration"
}

# Checkpoints, with the token that is in the secret: the text itself, or the one value of a JSON object.
pull_models() {
    local id
    if [[ ${token_secret-} ]]; then
        HF_TOKEN=$(aws secretsmanager get-secret-value --secret-id "$token_secret" --query SecretString --output text |
            python3 -c 'import json, sys
text = sys.stdin.read().strip()
print(next(iter(json.loads(text).values())) if text.startswith("{") else text)') ||
            fail "the secret $token_secret cannot be read"
        export HF_TOKEN
    fi
    for id in "${ids[@]}"; do
        say "fetching $id"
        as_service "$neuronx_serve" models pull "$id" ||
            fail "$id cannot be fetched; a gated model needs HuggingFaceTokenSecret, and its terms accepted"
    done
    unset HF_TOKEN
}
