#!/usr/bin/env bash
# scripts/demo.sh [--image photo.jpg] [--output out/] [--checkpoint NAME --adapter NAME]
#   sets the environment up and runs the main job once in a real ComfyUI: a photograph steers a picture at strength 0, 0.5
#   and 1. Writes a contact sheet, demo.png, and prints a table of what holds. Exit code 1 if something does not.
#   --image NAME        reference picture (default: a cat that scikit-image ships)
#   --output FOLDER     where demo.png goes (default: out)
#   --checkpoint NAME, --adapter NAME
#                       files of your ComfyUI, which COMFYUI_PATH names, in place of tiny random models made for the demo
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

# env.sh changes into the checkout: paths given by the user are meant from where they stand.
absolute() {
    case $1 in
        /*) printf '%s' "$1" ;;
        *) printf '%s' "$PWD/$1" ;;
    esac
}

arguments=()
while (($#)); do
    case $1 in
        -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
        --image=* | --output=*) arguments+=("${1%%=*}=$(absolute "${1#*=}")") ;;
        --image | --output)
            arguments+=("$1")
            if (($# > 1)); then shift; arguments+=("$(absolute "$1")"); fi
            ;;
        *) arguments+=("$1") ;;
    esac
    shift
done
exec "$root/scripts/env.sh" python -m demo.run --output "$PWD/out" ${arguments[@]+"${arguments[@]}"}
