#!/bin/sh
# The gate on this host, for CI jobs: installs the package into .venv when it is not there. Arguments go to the gate,
# its exit code comes back (0 ready or degraded, 1 blocked, 20 incomplete, 4 usage).
. "$(dirname "$0")/env.sh"
exec "$venv/bin/gpu-discovery" gate "$@"
