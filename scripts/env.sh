#!/usr/bin/env bash
# scripts/env.sh COMMAND …   sets the environment up once, outside the checkout, and runs COMMAND in it from the
#                            repository root, with COMFYUI_PATH naming a ComfyUI that has this checkout linked in.
# scripts/env.sh --python    prints the virtual environment's Python, made if needed, nothing installed into it.
#
# PYTHON                  the interpreter to build on (default: the first of 3.11, 3.12, 3.13, 3.10 that runs)
# COMFYUI_PATH            a ComfyUI you have (default: one that scripts/comfyui.sh fetches); what it asks for beyond
#                         scripts/requirements.lock is installed without hashes, and said
# IPADAPTER_STUDIO_CACHE  where all that is fetched lies (default: ~/.cache/ipadapter-studio)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cache=${IPADAPTER_STUDIO_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ipadapter-studio}
lock=$root/scripts/requirements.lock   # made by scripts/lock.sh
quiet=(--disable-pip-version-check --no-input --progress-bar off)

say() { printf 'env.sh: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# Sets python, version and venv_module. A Python is tried by running it: a pyenv shim exists without one behind it.
find_python() {
    local candidate found without_venv='' candidates=(python3.11 python3.12 python3.13 python3.10 python3)
    local probe='
import importlib.util as u, sys
if not (3, 10) <= sys.version_info[:2] <= (3, 13): sys.exit(1)
has = lambda *names: all(u.find_spec(name) for name in names)
module = "venv" if has("venv", "ensurepip") else "virtualenv" if has("virtualenv") else "none"
print("%d.%d" % sys.version_info[:2], module)'
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        found=$("$candidate" -c "$probe" 2>/dev/null) || continue
        python=$candidate version=${found% *} venv_module=${found#* }
        [[ $venv_module == none ]] || return 0
        without_venv=$candidate
    done
    [[ -z $without_venv ]] || die "$without_venv has no venv module: apt install python3-venv (or pip install virtualenv)"
    [[ -z ${PYTHON:-} ]] || die "PYTHON=$PYTHON does not run, or is not Python 3.10 to 3.13"
    die "no Python 3.10 to 3.13 found: install one, or name one with PYTHON=/path/to/python"
}

# Runs its arguments while no other env.sh does. In a subshell, so that COMMAND does not inherit the lock.
locked() {
    (
        if command -v flock >/dev/null; then   # macOS has none: there two at once are the user's to avoid
            flock -n 9 || { say "another set-up is running, waiting for it"; flock 9; }
        fi
        "$@"
    ) 9>"$cache/env.lock"
}

logged() {
    say "$1 ($SECONDS s)"
    "${@:2}" >>"$log" 2>&1 </dev/null && return
    local reason=''
    tail -n 25 "$log" >&2
    # pip's words, and uv's
    if grep -qiE 'do not match the hashes|hash mismatch' <<<"$(tail -n 25 "$log")"; then
        reason=": a package is another file than the one that scripts/requirements.lock names, and was not installed.\
 Is an index or a folder of your own set for pip or uv? Else somebody exchanged the file: please report it (SECURITY.md)"
    fi
    die "failed: $1$reason. The whole log: $log"
}

pip() { "$venv/bin/python" -m pip "$@"; }

# uv is faster. It does not read pip's settings: where pip is told of another index, uv would look in the wrong place.
choose_installer() {
    local uv told
    installer=pip
    uv=$(command -v uv) || return 0
    [[ $uv != "$venv"/* ]] || return 0   # it would have to replace itself
    told=$(pip config list)   # a pipe would fail where grep, which has seen enough, closes it before pip is done
    grep -qE '[.](index-url|extra-index-url|find-links|no-index|cert|client-cert|proxy|trusted-host)=' <<<"$told" ||
        installer=$uv
}

install_lock() {   # no source archives: building one would fetch what builds it, without hashes
    if [[ $installer == pip ]]; then
        pip install "${quiet[@]}" --require-hashes --no-deps --only-binary :all: -r "$lock"
    else
        "$installer" pip install --directory "$root" --python "$venv/bin/python" --require-hashes --no-deps \
            --only-binary :all: -r "$lock"
    fi
}

install_project() { pip install "${quiet[@]}" --no-index --no-deps --no-build-isolation -e "$root"; }

install_beyond_lock() {   # the user chose that ComfyUI; torch stays the one of the lock
    awk '/^torch(vision|audio)?==/ { print $1 }' "$lock" >"$venv/constraints.txt"
    pip install "${quiet[@]}" -c "$venv/constraints.txt" -r "$venv/beyond.txt"
}

make_venv() {
    [[ -f $venv/.made ]] && "$venv/bin/python" -c '' 2>/dev/null && return
    rm -rf "$venv"
    logged "making $venv" "$python" -m "$venv_module" "$venv"
    touch "$venv/.made"
}

what_is_installed() {   # a text that changes when the environment has to
    printf '%s\n' "$root"
    cat "$lock"
    awk '/^\[/ { keep = /^\[(build-system|project|project\.optional-dependencies)\]/ } keep' "$root/pyproject.toml"
    comfyui_requirements
}

comfyui_requirements() {   # the workflow templates are large and the server runs without them
    grep -Ev '^(torch|torchvision|torchaudio|comfyui-workflow-templates)([^a-z]|$)' "$COMFYUI_PATH/requirements.txt"
}

beyond_lock() {   # those of ComfyUI's requirements that the lock, which is installed, does not meet
    comfyui_requirements | "$venv/bin/python" -c '
import sys
from importlib.metadata import PackageNotFoundError, version
from packaging.requirements import InvalidRequirement, Requirement

def is_met(text):
    try:
        wanted = Requirement(text)
        return wanted.marker is not None and not wanted.marker.evaluate() or (
            wanted.url is None and wanted.specifier.contains(version(wanted.name), prereleases=True))
    except (InvalidRequirement, PackageNotFoundError):
        return False

lines = (line.partition(" #")[0].strip() for line in sys.stdin if not line.startswith("#"))
sys.stdout.writelines(f"{line}\n" for line in lines if line and not is_met(line))'
}

is_installed() { [[ -f $venv/.installed && $(<"$venv/.installed") == "$key" ]]; }

install() {
    is_installed && return   # by the one we waited for
    if [[ -f $venv/.installed ]]; then
        say "bringing $venv up to date (log: $log)"
    else
        say "setting up $venv: some minutes and 8 GB, once ($(df -Ph "$cache" | awk 'END { print $4 }') free; log: $log)"
    fi
    rm -f "$venv/.installed"
    # pip writes INSTALLER last: a package without it was cut off by a kill and would pass for installed.
    find "$venv"/lib/python*/site-packages -maxdepth 1 \
        \( -name '~*' -o -name '*.dist-info' ! -exec test -e '{}/INSTALLER' \; \) -exec rm -rf {} +
    choose_installer
    logged "1/2 the packages of scripts/requirements.lock, with ${installer##*/}" install_lock
    logged "2/2 this project" install_project
    beyond_lock >"$venv/beyond.txt"
    if [[ -s $venv/beyond.txt ]]; then
        say "not in the lock, and so installed without hashes: $(paste -sd ' ' "$venv/beyond.txt")"
        logged "what $COMFYUI_PATH asks for beyond the lock" install_beyond_lock
    fi
    printf '%s\n' "$key" >"$venv/.installed"
    say "ready after $SECONDS s"
}

mkdir -p "$cache" || die "cannot make $cache"
cache=$(cd "$cache" && pwd -P)
find_python
venv=$cache/venv-py$version
log=$cache/setup-py$version.log
if [[ ! -f $venv/.made ]] || ! "$venv/bin/python" -c '' 2>/dev/null; then
    : >"$log"
    locked make_venv
fi
if [[ ${1:-} == --python ]]; then
    printf '%s\n' "$venv/bin/python"
    exit
fi

COMFYUI_PATH=$(IPADAPTER_STUDIO_PYTHON=$venv/bin/python "$root/scripts/comfyui.sh")
key=$(what_is_installed | cksum)
is_installed || locked install

cd "$root"
if (($# == 0)); then
    say "ready. Run a command in it: scripts/env.sh COMMAND …, for instance scripts/env.sh python bench/requeue.py"
    exit
fi
if [[ $1 == mypy && ! -e .mypy_cache/checkout/ipadapter_studio ]]; then   # see pyproject.toml
    mkdir -p .mypy_cache/checkout
    ln -sfn ../.. .mypy_cache/checkout/ipadapter_studio
fi
export COMFYUI_PATH VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
unset PYTHONPATH PYTHONHOME
exec "$@"
