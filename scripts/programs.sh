# shellcheck shell=bash
# Sourced by test, after environment.sh: the programs that the tests call and pip does not have. Each is taken from this
# machine where it is there, else from Debian's or Ubuntu's packages. A test whose program cannot be had skips, and says so.

# ensure_unpacked PROGRAM PACKAGE: unpack the program into .venv/tools, where tests/conftest.py looks. Nothing is
# installed: that would take root, and the package `prometheus` starts a server of its own.
ensure_unpacked() {
    # shellcheck disable=SC2154  # venv is environment.sh's
    local program=$1 package=$2 tools=$venv/tools place
    if command -v "$program" >/dev/null || [[ -x $tools/$program ]] || ! command -v apt-get >/dev/null; then
        return
    fi
    echo "Unpacking $program of the package $package into $tools" >&2
    place=$(mktemp -d)
    if download_package "$place" "$package" && dpkg-deb --extract "$place"/*.deb "$place" &&
        "$place/usr/bin/$program" --version >/dev/null; then
        install -D "$place/usr/bin/$program" "$tools/$program"
    else
        echo "The package $package could not be had: the tests that call $program will skip" >&2
    fi
    rm -rf "$place"
}

download_package() (
    cd "$1" || exit
    # A container has no lists of packages until somebody updates them.
    apt-get download -qq "$2" 2>/dev/null || { update_lists && apt-get download -qq "$2" 2>/dev/null; }
)

update_lists() {
    ((EUID == 0)) && apt-get update -qq -o Acquire::Retries=0 -o Acquire::http::Timeout=20 >/dev/null 2>&1
}

# ensure_installed PROGRAM PACKAGE...: only root on Debian installs; elsewhere packages of these names are other things.
ensure_installed() {
    local program=$1
    shift
    if command -v "$program" >/dev/null || ((EUID != 0)) || ! grep -qs '^ID=debian' /etc/os-release; then
        return
    fi
    echo "Installing $* with apt-get" >&2
    { update_lists && apt-get install -y -qq --no-install-recommends "$@"; } >/dev/null ||
        echo "apt-get could not: the tests that call $program will skip" >&2
}
