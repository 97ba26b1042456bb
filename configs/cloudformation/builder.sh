#!/usr/bin/env bash
# The one-shot builder of the stack: compile each model for the settings that the server will have, and put the
# artifacts into the bucket. user-data.sh ends the machine afterwards.
# shellcheck source=configs/cloudformation/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

limit=${TIME_LIMIT:-9600} # seconds; the stack waits 10800

compile() {
    local left=$((limit - SECONDS)) code=0
    ((left > 0)) || fail "the time was over before $1 was compiled: give fewer Models, or ArtifactsS3Prefix"
    say "compiling $1: $((left / 60)) minutes are left"
    as_service timeout --signal=INT --kill-after=60 "$left" \
        "$neuronx_serve" compile "$1" --config "$configuration" --cpu || code=$?
    ((code != 124 && code != 137)) || fail "$1 was not compiled in time: give fewer Models, or ArtifactsS3Prefix"
    ((code == 0)) || fail "compiling $1 ended with $code"
}

install_software install --builder
choose_models
pull_models
for id in "${ids[@]}"; do
    compile "$id"
    # After each, so that a later failure leaves the earlier ones in the bucket.
    as_service "$neuronx_serve" artifacts push "${artifacts:?}" || fail "the artifacts cannot be put into $artifacts"
done
echo "$models" | aws s3 cp - "$artifacts/complete" --only-show-errors || fail "$artifacts/complete cannot be written"
