#!/usr/bin/env bash
# The server of the stack: neuronx-serve as a service, and Chat UI with its database in containers beside it. It has
# succeeded when a model is available and Chat UI answers.
# shellcheck source=configs/cloudformation/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

limit=${TIME_LIMIT:-10200} # seconds; the stack waits 10800
chat_ui=$root/etc/chat-ui
units=$root/etc/systemd/system

in_time() {
    ((SECONDS < limit)) || fail "$1"
}

# The builder writes `complete` behind the last artifact; a prefix that was given is complete.
pull_artifacts() {
    if [[ ${compile_here:?} == yes ]]; then
        say "waiting for the builder's artifacts in ${artifacts:?}"
        until aws s3 cp "$artifacts/complete" - >/dev/null 2>&1; do
            in_time "the builder's artifacts did not come"
            sleep 30
        done
    fi
    as_service "$neuronx_serve" artifacts pull "$artifacts" || fail "no artifacts could be had from $artifacts"
}

prepare_chat_ui() {
    local image images
    say "fetching Chat UI"
    apt-get -o DPkg::Lock::Timeout=600 install --yes docker.io || fail "docker.io cannot be installed"
    install -D -m 644 -t "$units" "$checkout"/configs/chat-ui/*.service
    sed -e 's|^OPENAI_BASE_URL=.*|OPENAI_BASE_URL=http://server:8080/v1|' \
        -e 's|^MONGODB_URL=.*|MONGODB_URL=mongodb://chat-ui-db:27017|' "$checkout/configs/chat-ui/openai.env" |
        install -D -m 644 /dev/stdin "$chat_ui/environment"
    # Without TLS in front: its cookies must not ask for it, and forms come from this address.
    printf '%s\n' "PUBLIC_ORIGIN=${origin:?}" "ORIGIN=$origin" COOKIE_SECURE=false >>"$chat_ui/environment"
    systemctl daemon-reload
    mapfile -t images < <(sed -n 's|^Environment=IMAGE=||p' "$units"/chat-ui*.service)
    for image in "${images[@]}"; do
        docker pull --quiet "$image" || fail "the image $image cannot be had"
    done
}

property() {
    systemctl show --property="$1" --value neuronx-serve
}

# The unit starts again by itself after a fault of the device; it has failed when it is `failed`.
start_server() {
    local shown='' status
    say "starting neuronx-serve"
    systemctl start --no-block neuronx-serve
    until [[ $(property ActiveState) == active ]]; do
        status=$(property StatusText)
        if [[ $status != "$shown" ]]; then
            say "$status" && shown=$status
        fi
        [[ $(property ActiveState) != failed ]] || fail "no model became available: $(last_words)"
        in_time "no model became available in time: $status"
        sleep 5
    done
    curl --fail --silent --show-error --retry 5 --retry-all-errors http://127.0.0.1:8080/health ||
        fail "neuronx-serve is active, and its /health is not 200: $(last_words)"
}

last_words() {
    journalctl --unit=neuronx-serve --lines=3 --output=cat --no-pager | tr '\n' ' '
}

# Its first page asks the server for the models, so this follows the server.
start_chat_ui() {
    say "starting Chat UI"
    systemctl enable --now chat-ui-db chat-ui || fail "Chat UI cannot be started"
    until curl --fail --silent --output /dev/null http://127.0.0.1:3000/; do
        in_time "Chat UI does not answer: $(journalctl --unit=chat-ui --lines=3 --output=cat --no-pager | tr '\n' ' ')"
        sleep 5
    done
}

install_software install
choose_models
pull_models
prepare_chat_ui
pull_artifacts
start_server
start_chat_ui
