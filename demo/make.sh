#!/usr/bin/env bash
# demo/make.sh [PART] [--work FOLDER]   makes the demo's models from nothing and puts them into demo/assets: base model, image
#                                       encoder, adapters. Within 4 hours on 2 CPU cores; cut off, it goes on where it was.
# demo/make.sh --help                   lists the parts
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
exec "$root/scripts/env.sh" python -m demo.world.make "$@"
