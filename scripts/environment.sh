# shellcheck shell=bash
# Sourced by serve and test: makes the environment .venv at the root of the checkout.
#
# ensure_environment EXTRA...   installs the project with these extras, unless that has been done: each extra leaves a
#                               stamp, made of everything that decides the installation, once pip has succeeded.
# PYTHON names the interpreter to build it with (default python3).

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv

fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

make_venv() {
    local python=${PYTHON:-python3}
    command -v "$python" >/dev/null || fail "$python was not found: install Python 3.10 or newer, or name one with PYTHON="
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$python is $("$python" -V 2>&1): Python 3.10 or newer is needed, name one with PYTHON="
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python has no venv module: install it (Debian and Ubuntu: apt install python3-venv)"
    echo "Creating $venv with $("$python" -V)" >&2
    "$python" -m venv --clear "$venv"
}

fingerprint() {
    "$venv/bin/python" -c '
import hashlib, pathlib, sys
pyproject = pathlib.Path(sys.argv[1], "pyproject.toml").read_bytes()
print(hashlib.sha256(pyproject + f"{sys.argv[1]} {sys.version}".encode()).hexdigest())
' "$root"
}

ensure_environment() {
    local extra want missing=()
    want=$(fingerprint 2>/dev/null) || want="no usable interpreter"
    for extra in "$@"; do
        [[ $(cat "$venv/.installed-$extra" 2>/dev/null) == "$want" ]] || missing+=("$extra")
    done
    if ((${#missing[@]} == 0)); then
        return
    fi
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        make_venv
    fi
    install_extras "${missing[@]}"
}

install_extras() {
    local extra extras
    extras=$(IFS=, && echo "$*")
    echo "Installing neuronx-serve[$extras] into $venv: minutes the first time, seconds later" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "${root}[$extras]" >&2
    for extra in "$@"; do
        fingerprint >"$venv/.installed-$extra"
    done
}
