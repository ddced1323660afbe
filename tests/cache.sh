# shellcheck shell=sh
# What outlives a clone: sourced by the scripts of tests/ and tests/virtual_pi, in the project's directory.
#
# In the cache are tools, compiled dependencies, and what was built and has passed, each under a fingerprint of everything
# that it was made of. It may be deleted at any time. Runs in several clones at once do not disturb each other: who changes
# something there holds a lock, and what is whole gets its name by a rename.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pigateway
mkdir -p "$cache"
# what a run that was ended has left half done; what belongs to root goes where it was made
find "$cache" -maxdepth 3 -name 'new.*' -mtime +1 -prune -exec rm -rf {} + 2> /dev/null || true

# in_cache NAME PATH: PATH in this clone leads to NAME in the cache
in_cache() {
    mkdir -p "$cache/$1" "$(dirname "$2")"
    if [ "$(readlink "$2")" != "$cache/$1" ]; then
        rm -rf "$2"
        ln -sfn "$cache/$1" "$2"
    fi
}

# locked NAME COMMAND...: one at a time, of all runs
locked() {
    lock=$1
    shift
    flock "$cache/$lock.lock" "$@"
}

# The compilers and emulators that builds depend on
tool_versions() {
    rustc -vV
    for tool in /usr/bin/rustc /usr/bin/cargo aarch64-linux-gnu-gcc arm-linux-gnueabihf-gcc qemu-aarch64-static \
        qemu-system-aarch64; do
        "$tool" --version 2> /dev/null | head -n 1 || true
    done
}

# fingerprint PATH...: of the tools, and of what these files and directories hold, new files included
fingerprint() {
    {
        tool_versions
        git ls-files -z --cached --others --exclude-standard -- "$@" | xargs -0 sha256sum 2> /dev/null
    } | sha256sum | cut -c1-24
}

# keep_newest COUNT PATH...: removes the others
keep_newest() {
    count=$1
    shift
    # shellcheck disable=SC2012 # names are ours: no spaces
    ls -dt "$@" 2> /dev/null | tail -n "+$((count + 1))" | xargs -r rm -rf
}
