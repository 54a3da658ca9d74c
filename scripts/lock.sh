#!/usr/bin/env bash
# scripts/lock.sh [--upgrade | --upgrade-package NAME …]
#   writes scripts/requirements.lock: every package that scripts/env.sh installs, for Python 3.10 to 3.13, with the
#   hashes of its files on PyPI. What is in the lock stays as it is while it fits; the options take newer versions.
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
cp scripts/requirements.lock "$work/lock.txt" 2>/dev/null || true

# Of PyPI alone: whoever has an index of their own must not leave its address or its hashes in the lock.
UV_CUSTOM_COMPILE_COMMAND=scripts/lock.sh env -u COMFYUI_PATH -u UV_INDEX -u UV_EXTRA_INDEX_URL -u UV_FIND_LINKS \
    -u UV_CONSTRAINT -u UV_OVERRIDE scripts/env.sh uv --no-config --quiet pip compile "$@" \
    --default-index https://pypi.org/simple --universal --python-version 3.10 --generate-hashes --only-binary :all: \
    --override "$work/overrides.txt" --output-file "$work/lock.txt" \
    --extra dev pyproject.toml "$work/ComfyUI's requirements.txt" scripts/requirements.in
sed "s|-r $work/||; s|--override $work/.*|the override in scripts/lock.sh|" "$work/lock.txt" >"$work/clean.txt"
mv "$work/clean.txt" scripts/requirements.lock
printf 'lock.sh: scripts/requirements.lock has %s packages\n' "$(grep -c '^[^ #]' scripts/requirements.lock)" >&2
