#!/usr/bin/env bash
# scripts/test.sh [--unit | [--long] [--all-comfyui] | --comfyui VERSION] [pytest arguments and files…]
#   sets the environment up and runs all tests, in as many lanes side by side as there are cores: those of the trainer and
#   others that need no ComfyUI, and those that run inside a real one (tests/comfy, tests/legacy). What a lane says is
#   shown when it is done.
#   --unit            only tests/unit
#   --all-comfyui     all, and the tests marked smoke in the oldest ComfyUI; with --long before it in each older one,
#                     and those marked smoke_long
#   --long            also the tests marked long: whole trainings, several processes, compiling, and more of what a short
#                     test tries once (another model, precision, file); else only where their file is named
#   --comfyui VERSION only tests/comfy and tests/legacy, all of them, in that older ComfyUI
# Files and folders under tests/ narrow it down to them. What fits in one lane runs in the foreground.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
env_sh=$root/scripts/env.sh
older_versions=(0.16.3 0.20.1 0.18.2)   # the oldest first: what holds in it and in the newest holds between, mostly
lanes=$(nproc 2>/dev/null || sysctl -n hw.ncpu)   # macOS has no nproc
((lanes >= 2)) || lanes=2                         # one can work while the other waits
sign_of_life=30        # seconds
patience=40            # seconds that an interrupted lane may take to stop its server and its browser
insist=10              # seconds until it is interrupted again: a training in a test takes the first as its own
cd "$root"

say() { printf 'test.sh: %s\n' "$*" >&2; }

here=yes older=no smoke="smoke or smoke_long" short=(-m "not long")
if [[ ${1:-} == --long ]]; then
    shift
    short=()
else
    smoke="smoke and not long and not smoke_long"
fi
case ${1:-} in
    --unit) shift; set -- tests/unit "$@" ;;
    --all-comfyui)
        shift; older=yes
        ((!${#short[@]})) || older_versions=("${older_versions[0]}")
        ;;
    --comfyui) older_versions=("${2:?--comfyui needs a version}"); shift 2; here=no older=yes smoke="" ;;
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit ;;
esac

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
    short=()
else
    comfy=(tests/comfy) legacy=(tests/legacy)
fi

if ((${#short[@]})); then
    selected=("${short[@]}")
else
    selected=(-o faulthandler_timeout=3600)   # seconds that one of the long tests may take
fi

# A job is a label and a function with one argument; each is a pytest of its own, because ComfyUI's modules are called
# nodes, tests and utils as well, and one process holds one ComfyUI. The longest come first, so that all lanes end at
# about the same time.
labels=() jobs=()
add() { labels+=("$1") jobs+=("${*:2}"); }

test_pure() {
    exec "$env_sh" python -m pytest -rs "${selected[@]}" ${pure[@]+"${pure[@]}"} ${options[@]+"${options[@]}"}
}
test_trainer() {
    exec "$env_sh" python -m pytest -rs "${selected[@]}" tests/trainer ${options[@]+"${options[@]}"}
}
test_rest() {
    local folder rest=()
    for folder in tests/*/; do
        case $folder in tests/trainer/ | tests/comfy/ | tests/legacy/) continue ;; esac
        [[ -z $(compgen -G "${folder}test_*.py") ]] || rest+=("${folder%/}")
    done
    exec "$env_sh" python -m pytest -rs "${selected[@]}" "${rest[@]}" ${options[@]+"${options[@]}"}
}
test_comfy() {
    exec "$env_sh" python -m pytest -rs "${selected[@]}" "${comfy[@]}" ${options[@]+"${options[@]}"}
}
test_legacy() {
    exec "$env_sh" python -m pytest -rs "${selected[@]}" "${legacy[@]}" ${options[@]+"${options[@]}"}
}
test_older() {   # VERSION
    # Inside env.sh, so that the one environment, made for the newest, serves them all.
    exec "$env_sh" env "COMFYUI_PATH=$(env -u COMFYUI_PATH scripts/comfyui.sh "$1")" \
        python -m pytest -rs ${comfy[@]+"${comfy[@]}"} ${legacy[@]+"${legacy[@]}"} ${smoke:+-m "$smoke"} \
        ${options[@]+"${options[@]}"}
}

"$env_sh" true   # so that a failed set-up is no failed test
if [[ $here == yes ]]; then
    if ((${#pure[@]})); then
        add "without ComfyUI" test_pure
    elif [[ $run_pure == yes ]]; then
        add "the trainer" test_trainer
    fi
    if ((${#comfy[@]} + ${#legacy[@]})); then
        newest="ComfyUI $(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$(scripts/comfyui.sh)/comfyui_version.py")"
        ((!${#comfy[@]})) || add "$newest" test_comfy
        ((!${#legacy[@]})) || add "$newest, legacy nodes" test_legacy
    fi
    ((${#pure[@]})) || [[ $run_pure == no ]] || add "without ComfyUI" test_rest
fi
if [[ $older == yes ]] && ((${#comfy[@]} + ${#legacy[@]})); then
    for version in "${older_versions[@]}"; do
        scripts/comfyui.sh "$version" >/dev/null   # lanes must not wait for one download
        add "ComfyUI $version${smoke:+, smoke}" test_older "$version"
    done
fi

failed=0 ran=0 report=()
record() {   # LABEL STATUS [LOG]
    local summary=''
    if (($# > 2)); then
        summary=$(grep -E '^=+ .* in [0-9.]+s.* =+$' "$3" | tail -n 1 | sed -E 's/^=+ //; s/ =+$//') || true
        while IFS= read -r line; do report+=("$1: NOT run: $line"); done < <(sed -n 's/^SKIPPED //p' "$3")
    fi
    case $2 in
        0) ran=1; report+=("$1: passed${summary:+ ($summary)}") ;;
        5) report+=("$1: no test") ;;   # as when -k matches only elsewhere
        *) ran=1 failed=1; report+=("$1: FAILED${summary:+ ($summary)}") ;;
    esac
}

pids=() lane_jobs=()   # by lane; an idle one has an empty pid
start() {   # LANE JOB
    local command
    read -ra command <<<"${jobs[$2]}"
    set -m   # a process group of its own, which one kill reaches, and in which Ctrl-C is not ignored
    OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "${command[@]}" >"$logs/$2" 2>&1 </dev/null &
    set +m
    pids[$1]=$! lane_jobs[$1]=$2
}

interrupt() {
    trap '' INT TERM HUP
    local pid waited=0
    for pid in ${pids[@]+"${pids[@]}"}; do
        [[ -z $pid ]] || kill -INT -- "-$pid" 2>/dev/null || true   # pytest then stops what it started
    done
    for pid in ${pids[@]+"${pids[@]}"}; do
        while [[ -n $pid ]] && kill -0 "$pid" 2>/dev/null && ((waited++ < patience * 5)); do
            sleep 0.2
            ((waited % (insist * 5))) || kill -INT "$pid" 2>/dev/null || true
        done
    done
    say "stopped"
    exit 130
}

leave() {   # nothing behind: neither logs nor what is left of an interrupted lane
    local pid
    for pid in ${pids[@]+"${pids[@]}"}; do
        [[ -z $pid ]] || kill -KILL -- "-$pid" 2>/dev/null || true
    done
    rm -rf "$logs"
}

progress() {   # how far each lane is
    local lane job share line=''
    for lane in "${!pids[@]}"; do
        [[ -n ${pids[lane]} ]] || continue
        job=${lane_jobs[lane]}
        share=$(grep -Eo '[0-9]+%' "$logs/$job" | tail -n 1) || true   # there is none at first
        line+="${line:+, }${labels[job]}${share:+ at $share}"
    done
    say "$SECONDS s: $line"
}

run_side_by_side() {
    local next=0 lane busy status told=$SECONDS
    logs=$(mktemp -d)
    trap leave EXIT
    trap interrupt INT TERM HUP
    while :; do
        busy=no
        for ((lane = 0; lane < lanes; lane++)); do
            if [[ -n ${pids[lane]:-} ]] && ! kill -0 "${pids[lane]}" 2>/dev/null; then
                status=0
                wait "${pids[lane]}" || status=$?
                kill -KILL -- "-${pids[lane]}" 2>/dev/null || true   # a server that a crashed pytest left
                pids[lane]=''
                say "${labels[${lane_jobs[lane]}]}, which ended after $SECONDS s:"
                cat "$logs/${lane_jobs[lane]}"
                record "${labels[${lane_jobs[lane]}]}" "$status" "$logs/${lane_jobs[lane]}"
            fi
            if [[ -z ${pids[lane]:-} ]] && ((next < ${#jobs[@]})); then
                start "$lane" "$next"
                say "begun: ${labels[next]}"
                next=$((next + 1))
            fi
            [[ -z ${pids[lane]:-} ]] || busy=yes
        done
        [[ $busy == yes ]] || return 0
        ((SECONDS - told < sign_of_life)) || { progress; told=$SECONDS; }
        sleep 0.5
    done
}

if ((${#jobs[@]} == 1)); then
    trap 'exit 130' INT   # pytest exits orderly on Ctrl-C, after which bash would go on
    status=0
    read -ra command <<<"${jobs[0]}"
    ("${command[@]}") || status=$?
    record "${labels[0]}" "$status"
else
    run_side_by_side
fi
printf 'test.sh: %s\n' "${report[@]}" >&2
((ran)) || { say "error: no test ran"; exit 5; }
exit "$failed"
