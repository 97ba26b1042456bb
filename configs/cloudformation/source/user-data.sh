# shellcheck shell=bash
# Fetch the source of neuronx-serve, run configs/cloudformation/$role.sh out of it, and tell the stack how it ended.
set -uo pipefail
# What the template puts before this.
: "${role:?}" "${signal_url:?}" "${source_url:?}" "${source_revision?}"
root=${NEURONX_SERVE_ROOT-} # for tests: a directory in the place of /
source_directory=$root/usr/local/src/neuronx-serve
export log=$root/var/log/neuronx-serve-stack.log
export GIT_TERMINAL_PROMPT=0 # nobody is there to type a password

# end STATUS TEXT: what cfn-signal does for a wait condition; a builder then ends itself.
end() {
    local body
    echo "== $role: $1: $2" | tee -a "$log"
    body=$(python3 -c 'import json, sys
print(json.dumps(dict(zip(("Status", "Reason", "UniqueId", "Data"), sys.argv[1:]))))' "$1" "$2" "$role" "$2")
    curl --fail --silent --show-error --retry 8 --retry-all-errors --request PUT --header 'Content-Type:' \
        --data-binary "$body" "$signal_url"
    if [[ $role == builder ]]; then
        aws s3 cp "$log" "${artifacts:?}/logs/builder.log" --only-show-errors
        shutdown -h now
    fi
    [[ $1 == SUCCESS ]] && exit 0
    exit 1
}

# The network and the package mirrors may take a while to answer.
persist() {
    local attempt
    for attempt in 1 2 3 4 5 6; do
        "$@" && return
        sleep $((attempt * 10))
    done
    return 1
}

fetch_archive() {
    local archive=$1/archive
    if [[ $source_url == s3://* ]]; then
        persist apt-get -o DPkg::Lock::Timeout=600 update &&
            persist apt-get -o DPkg::Lock::Timeout=600 install --yes awscli &&
            persist aws s3 cp "$source_url" "$archive" --only-show-errors || return
    else
        persist curl --fail --location --silent --show-error --output "$archive" "$source_url" || return
    fi
    if [[ $source_revision ]] && ! echo "$source_revision  $archive" | sha256sum --check --quiet; then
        echo "its SHA-256 is $(sha256sum <"$archive"), SourceRevision is $source_revision"
        return 1
    fi
    tar -xzf "$archive" -C "$1" && rm "$archive"
}

fetch_repository() {
    git init --quiet "$1/repository" &&
        persist git -C "$1/repository" fetch --quiet --depth 1 "$source_url" "${source_revision:-HEAD}" &&
        git -C "$1/repository" checkout --quiet FETCH_HEAD
}

fetch_source() {
    local work inside
    work=$(mktemp -d)
    case $source_url in
        s3://* | *.tar.gz | *.tgz | *.tar.gz\?*) fetch_archive "$work" || return ;;
        *) fetch_repository "$work" || return ;;
    esac
    inside=("$work"/*) # an archive may hold one directory with everything in it
    ((${#inside[@]} == 1)) && work=${inside[0]}
    rm -rf "$source_directory" && mkdir -p "${source_directory%/*}" && mv "$work" "$source_directory" || return
    chmod 755 "$source_directory"
    if [[ ! -r $source_directory/configs/cloudformation/$role.sh ]]; then
        echo "it holds no configs/cloudformation/$role.sh"
        return 1
    fi
}

told() { tail -n 4 "$log" | tr -s '\r\n' ' ' | tail -c 800; }

mkdir -p "${log%/*}"
[[ $role != builder ]] || shutdown -h +178 # whatever happens
fetch_source 2>&1 | tee -a "$log"
((PIPESTATUS[0] == 0)) || end FAILURE "the source could not be had from ${source_url%%\?*} $source_revision: $(told)"
bash "$source_directory/configs/cloudformation/$role.sh" 2>&1 | tee -a "$log"
((PIPESTATUS[0] == 0)) || end FAILURE "$(told)"
end SUCCESS "done"
