# shellcheck shell=sh
# The cache that outlives a clone. The scripts of tests/ and tests/virtual_pi source this file in the project's directory.
#
# The cache contains tools, compiled dependencies, and the results of builds and passed steps, each with a fingerprint of all
# of its inputs. It may be deleted at any time. Runs in several clones at the same time do not disturb each other: a run that
# changes the cache holds a lock, and complete files get their names by a rename.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pigateway
mkdir -p "$cache"
# removes incomplete files of a run that was ended; files of root are removed where they were made
find "$cache" -maxdepth 3 -name 'new.*' -mtime +1 -prune -exec rm -rf {} + 2> /dev/null || true

# in_cache NAME PATH: PATH in this clone leads to NAME in the cache
in_cache() {
    mkdir -p "$cache/$1" "$(dirname "$2")"
    if [ "$(readlink "$2")" != "$cache/$1" ]; then
        rm -rf "$2"
        ln -sfn "$cache/$1" "$2"
    fi
}

# locked NAME COMMAND...: runs the command while no other run holds this lock
locked() {
    lock=$1
    shift
    flock "$cache/$lock.lock" "$@"
}

# The versions of the compilers and emulators that builds depend on
tool_versions() {
    rustc -vV
    for tool in /usr/bin/rustc /usr/bin/cargo aarch64-linux-gnu-gcc arm-linux-gnueabihf-gcc qemu-aarch64-static \
        qemu-system-aarch64; do
        "$tool" --version 2> /dev/null | head -n 1 || true
    done
}

# fingerprint PATH...: a fingerprint of the tools and of the contents of these files and directories, new files included
fingerprint() {
    {
        tool_versions
        git ls-files -z --cached --others --exclude-standard -- "$@" | xargs -0 sha256sum 2> /dev/null
    } | sha256sum | cut -c1-24
}

# keep_newest COUNT PATH...: keeps the newest of these paths and removes the others
keep_newest() {
    count=$1
    shift
    # shellcheck disable=SC2012 # names are ours: no spaces
    ls -dt "$@" 2> /dev/null | tail -n "+$((count + 1))" | xargs -r rm -rf
}

# cargo_tools: cargo-deny and cargo-deb, which no distribution has, in the cache if they are not on the path. They are built
# without optimisation and without what a debugger needs, because they run only for seconds.
cargo_tools() {
    for tool in 'cargo-deny --version 0.20.2' 'cargo-deb --no-default-features'; do
        name=${tool%% *}
        if command -v "$name" > /dev/null || [ -x "$cache/tools/bin/$name" ]; then continue; fi
        echo "building $name"
        # shellcheck disable=SC2086 # a name and options
        CARGO_PROFILE_DEV_DEBUG=0 locked tools cargo install --quiet --locked --debug --root "$cache/tools" $tool || return 1
    done
}
