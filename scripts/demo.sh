#!/usr/bin/env bash
# scripts/demo.sh [--image photo.jpg] [--output out/]
#   sets the environment up and runs six workflows in a real ComfyUI with the small trained model that comes along:
#   variations, text, strength, two references, one for each half, style and composition. Writes demo.html and demo.png
#   and prints a table of what holds. Exit code 1 if something does not.
#   --image NAME        your picture in the place of the first reference (the model's world is emoji: expect no likeness)
#   --output FOLDER     where demo.html and demo.png go (default: out)
# scripts/demo.sh --serve
#   starts ComfyUI with the demo's models and pictures, prints the address to open, runs until Ctrl-C: the page opens
#   with the demo's workflows
# COMFYUI_PATH=… scripts/demo.sh --install
#   copies the demo's models, pictures and workflows into your ComfyUI: they are in its page's list of workflows
# COMFYUI_PATH=… scripts/demo.sh --checkpoint NAME --adapter NAME [--image photo.jpg] [--output out/]
#   runs the simple workflow with models of your ComfyUI, by default with a cat that scikit-image ships
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
        --install)
            if [[ -z ${COMFYUI_PATH:-} ]]; then
                echo "demo: error: set COMFYUI_PATH to the ComfyUI that --install copies into" >&2
                exit 2
            fi
            arguments+=("$1")
            ;;
        *) arguments+=("$1") ;;
    esac
    shift
done
exec "$root/scripts/env.sh" python -m demo.run --output "$PWD/out" ${arguments[@]+"${arguments[@]}"}
