#!/bin/sh
# Makes .venv-mergekit at the repository root: mergekit 0.1.5, in its own environment.
# mergekit is run there as a black box; nothing of it is imported by mergewise.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
python3 -m venv "$root/.venv-mergekit"
"$root/.venv-mergekit/bin/pip" install --constraint "$root/constraints.txt" "mergekit==0.1.5"
