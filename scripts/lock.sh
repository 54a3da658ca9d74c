#!/usr/bin/env bash
# scripts/lock.sh [--upgrade | --upgrade-package NAME …]
#   writes scripts/requirements.lock: every package that scripts/env.sh installs, for Python 3.10 to 3.13, with the
#   hashes of its files on PyPI; and scripts/docs.lock, the same of scripts/docs.in for scripts/docs.sh. What is in a
#   lock stays as it is while it fits; the options take newer versions.
# What goes in: pyproject.toml's extra "dev", which is all of this project and its tools; what the newest ComfyUI of
# scripts/comfyui.sh asks for; and scripts/requirements.in, which says line by line why.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$root"

comfyui=$(env -u COMFYUI_PATH scripts/comfyui.sh)
# The workflow templates are large, and the server runs without them; torch and its like are in requirements.in.
grep -Ev '^(torch|torchvision|torchaudio|comfyui-workflow-templates)([^a-z]|$)' "$comfyui/requirements.txt" \
    >"$work/ComfyUI's requirements.txt"
grep '^torch==' scripts/requirements.in >"$work/overrides.txt"   # torchaudio's and others' word on torch does not count

# Of PyPI alone: whoever has an index of their own must not leave its address or its hashes in the lock.
write_lock() {   # FILE, then what is asked for
    local lock=$1
    cp "$lock" "$work/lock.txt" 2>/dev/null || rm -f "$work/lock.txt"
    UV_CUSTOM_COMPILE_COMMAND=scripts/lock.sh env -u COMFYUI_PATH -u UV_INDEX -u UV_EXTRA_INDEX_URL -u UV_FIND_LINKS \
        -u UV_CONSTRAINT -u UV_OVERRIDE scripts/env.sh uv --no-config --quiet pip compile ${upgrades[@]+"${upgrades[@]}"} \
        --default-index https://pypi.org/simple --universal --python-version 3.10 --generate-hashes \
        --only-binary :all: --output-file "$work/lock.txt" "${@:2}"
    sed "s|-r $work/||; s|--override $work/.*|the override in scripts/lock.sh|" "$work/lock.txt" >"$work/clean.txt"
    mv "$work/clean.txt" "$lock"
    printf 'lock.sh: %s has %s packages\n' "$lock" "$(grep -c '^[^ #]' "$lock")" >&2
}

upgrades=("$@")
write_lock scripts/requirements.lock --override "$work/overrides.txt" \
    --extra dev pyproject.toml "$work/ComfyUI's requirements.txt" scripts/requirements.in
write_lock scripts/docs.lock scripts/docs.in
