#!/usr/bin/env bash
# scripts/docs.sh [serve]   builds the documentation as a site into out/site; a link that leads nowhere is an error.
#                           With "serve": shows it at http://127.0.0.1:8000 and follows changes.
# Its packages, scripts/docs.lock, go into an environment of their own beside that of scripts/env.sh: nothing else needs
# them. IPADAPTER_STUDIO_CACHE names where that lies.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
lock=$root/scripts/docs.lock   # made by scripts/lock.sh
say() { printf 'docs.sh: %s\n' "$*" >&2; }

python=$("$root/scripts/env.sh" --python)
base=${python%/bin/python}
venv=${base%/*}/docs-${base##*/}
key=$(cksum <"$lock")

install() {
    [[ ! -f $venv/.installed || $(<"$venv/.installed") != "$key" ]] || return 0   # by the one we waited for
    say "setting up $venv, some seconds"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --require-hashes --no-deps \
        --only-binary :all: -r "$lock" </dev/null
    printf '%s\n' "$key" >"$venv/.installed"
}
(
    ! command -v flock >/dev/null || flock 9
    install
) 9>"$venv.lock"

cd "$root"
unset PYTHONPATH PYTHONHOME
export NO_MKDOCS_2_WARNING=1   # Material's advertisement for its successor
if [[ ${1:-} == serve ]]; then
    exec "$venv/bin/mkdocs" "$@"
fi
exec "$venv/bin/mkdocs" build --strict "$@"   # with --quiet a warning would not be counted
