#!/bin/bash
# Every check of this repository that needs no GPU: style, types, tests; as root also the tests of an unprivileged user.
# Arguments go to pytest (then only the tests run). Longer tiers: ci/versions.sh, ci/bench/*, ci/loader/*.
EXTRAS=dev
. "$(dirname "$0")/env.sh"
cd "$here"
set -o pipefail
if [ $# -gt 0 ]; then
  exec "$venv/bin/python" -m pytest "$@"
fi
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/mypy"
"$venv/bin/python" ci/evidence.py --check
# A worker that dies is not replaced: pytest-xdist 3.8 with --dist loadfile may then wait for ever for its tests. Should
# anything else hang, the run ends all the same: a test after ten minutes, with every stack, the whole after forty-five.
timeout --foreground --kill-after=60 2700 \
  "$venv/bin/python" -m pytest -q -n "${JOBS:-2}" --dist loadfile --max-worker-restart=0 -o timeout=600 -rs || {
  code=$?
  [ "$code" != 124 ] || echo "ci/test.sh: the tests did not end within 45 minutes; ci/test.sh -v says which" >&2
  exit "$code"
}
if [ "$(id -u)" = 0 ]; then
  ci/unprivileged.sh
fi
# The command that the README begins with: no GPU, so the simulated one.
cd "$(mktemp -d)"
"$here/ci/demo.sh" | tail -2
