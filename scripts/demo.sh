#!/usr/bin/env bash
# scripts/demo.sh [--image photo.jpg] [--output out/] [--checkpoint NAME --adapter NAME]
#   sets the environment up and runs the main job once in a real ComfyUI: see demo/run.py, or --help
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# env.sh changes into the checkout: paths given by the user are meant from where they stand.
arguments=()
while (($#)); do
    arguments+=("$1")
    case $1 in
        --image | --output)
            (($# > 1)) && { shift; arguments+=("$(realpath -m -- "$1")"); }
            ;;
        --image=* | --output=*) arguments[-1]="${1%%=*}=$(realpath -m -- "${1#*=}")" ;;
    esac
    shift
done
[[ " ${arguments[*]-} " == *" --output"* ]] || arguments+=(--output "$PWD/out")
exec "$root/scripts/env.sh" python -m demo.run "${arguments[@]}"
