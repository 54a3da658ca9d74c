#!/usr/bin/env bash
# scripts/test.sh [--unit | --all-comfyui | --comfyui VERSION] [pytest arguments and files…]
#   sets the environment up and runs all tests: unit, parity and trainer, then tests/comfy and tests/legacy, each
#   inside a real ComfyUI
#   --unit            only tests/unit
#   --all-comfyui     all, and tests/comfy and tests/legacy once more in each older ComfyUI
#   --comfyui VERSION only those two, in that older ComfyUI
# Files and folders under tests/ narrow it down to them.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
env_sh=$root/scripts/env.sh
older_versions=(0.20.1 0.18.2 0.16.3)
cd "$root"
trap 'exit 130' INT   # pytest exits orderly on Ctrl-C, after which bash would go on

say() { printf 'test.sh: %s\n' "$*" >&2; }

here=yes older=no
case ${1:-} in
    --unit) shift; set -- tests/unit "$@" ;;
    --all-comfyui) shift; older=yes ;;
    --comfyui) older_versions=("${2:?--comfyui needs a version}"); shift 2; here=no older=yes ;;
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit ;;
esac

# ComfyUI's own modules are called nodes, tests and utils as well: each of these two gets a process of its own.
pure=() comfy=() legacy=() options=()
for argument in "$@"; do
    case $argument in
        tests/comfy*) comfy+=("$argument") ;;
        tests/legacy*) legacy+=("$argument") ;;
        tests/*) pure+=("$argument") ;;
        *) options+=("$argument") ;;
    esac
done
run_pure=yes
if ((${#pure[@]} + ${#comfy[@]} + ${#legacy[@]})); then
    ((${#pure[@]})) || run_pure=no
else
    comfy=(tests/comfy) legacy=(tests/legacy)
fi

failed=0 ran=0 report=()
run() {   # LABEL PYTEST-ARGUMENTS…   in the ComfyUI that COMFYUI_PATH names, if it does
    say "$1: pytest ${*:2}"
    local status=0
    "$env_sh" ${override[@]+"${override[@]}"} python -m pytest "${@:2}" || status=$?
    case $status in
        0) ran=1; report+=("$1: passed") ;;
        5) report+=("$1: no test") ;;   # as when -k matches only elsewhere
        *) ran=1 failed=1; report+=("$1: FAILED") ;;
    esac
}

run_in() {   # VERSION   the tests that need a ComfyUI
    ((${#comfy[@]} == 0)) || run "ComfyUI $1" "${comfy[@]}" ${options[@]+"${options[@]}"}
    ((${#legacy[@]} == 0)) || run "ComfyUI $1, IPAdapter_plus nodes" "${legacy[@]}" ${options[@]+"${options[@]}"}
}

override=()
"$env_sh" true   # so that a failed set-up is no failed test
if [[ $here == yes ]]; then
    [[ $run_pure == no ]] || run "unit, parity and trainer" ${pure[@]+"${pure[@]}"} ${options[@]+"${options[@]}"}
    version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$(scripts/comfyui.sh)/comfyui_version.py")
    run_in "$version"
fi
if [[ $older == yes ]]; then
    for version in "${older_versions[@]}"; do
        # Inside env.sh, so that the one environment, made for the newest, serves them all.
        override=(env "COMFYUI_PATH=$(env -u COMFYUI_PATH scripts/comfyui.sh "$version")")
        run_in "$version"
    done
fi

browser=${CHROMIUM:-/usr/bin/chromium}
if [[ ! -x $browser ]]; then
    report+=("the tests that open ComfyUI's page did NOT run: there is no $browser (apt-get install chromium, or set CHROMIUM)")
fi
((${#report[@]} == 0)) || printf 'test.sh: %s\n' "${report[@]}" >&2
((ran)) || { say "error: no test ran"; exit 5; }
exit "$failed"
