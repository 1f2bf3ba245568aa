#!/bin/sh
# Build ci/templates/container/Dockerfile with this checkout, and see that the gate in it answers as documented, on the
# SIMULATED H100: as root, as an ordinary user without capabilities on a read-only root directory, and without GPUs.
#
#   ci/container.sh [WHEELS]      WHEELS: a directory made by ci/templates/wheelhouse.sh with the image's Python
#
# Needs docker (23 or newer) or podman, and the images that PYTHON and OLLAMA name, here or from a registry. Without
# WHEELS the index is asked for what this checkout needs. ENGINE chooses the engine, RUN_ARGS is added to its `run`.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
engine=${ENGINE:-}
for name in docker podman; do
  if [ -z "$engine" ] && "$name" info >/dev/null 2>&1; then engine=$name; fi
done
if [ -z "$engine" ]; then
  echo "ci/container.sh: neither docker nor podman answers to \`info\` here; set ENGINE, or start one" >&2
  exit 2
fi
no_index=1
if [ $# -eq 0 ]; then
  no_index=
  mkdir "$work/copy" # setuptools leaves build/ beside the sources, and what lies there gets into later wheels
  (cd "$here" && tar -cf - --exclude=__pycache__ pyproject.toml README.md LICENSE pytest_gpudiscovery suites) |
    tar -xf - -C "$work/copy"
  "${PYTHON3:-python3}" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$work/wheels" "$work/copy"
fi
# Not from the cache: Podman's does not see that the wheels are others.
# shellcheck disable=SC2086
"$engine" build --no-cache ${BUILD_ARGS:-} -t gpu-gate-smoke -f "$here/ci/templates/container/Dockerfile" \
  --build-arg PYTHON="${PYTHON:-python:3.12-slim}" --build-arg OLLAMA="${OLLAMA:-ollama/ollama:latest}" \
  --build-arg PACKAGE='pytest-gpudiscovery[simulate]' --build-arg PIP_NO_INDEX="$no_index" "${1:-$work/wheels}"

# expect CODE WORDS WHAT RUN-ARGUMENTS -- GATE-ARGUMENTS: the gate's exit code, and its last line has WORDS.
status=0
expect() {
  code=$1 words=$2 what=$3
  shift 3
  before=
  while [ "$1" != -- ]; do before="$before $1"; shift; done
  shift
  seen=0
  # shellcheck disable=SC2086
  "$engine" run --rm ${RUN_ARGS:-} $before gpu-gate-smoke "$@" >"$work/out" 2>&1 || seen=$?
  if [ "$seen" -eq "$code" ] && grep -q -- "$words" "$work/out"; then
    echo "as expected (exit $code): $what"
  else
    status=1
    echo "NOT as expected: $what: exit $seen, expected $code and \"$words\"; the last lines are" >&2
    tail -5 "$work/out" >&2
  fi
}
mkdir "$work/root" "$work/user"
chmod 777 "$work/user"
small="--user 1000:1000 --cap-drop ALL --security-opt no-new-privileges --pids-limit 128 --read-only --tmpfs /tmp:exec"
# shellcheck disable=SC2086
{
  expect 0 'SIMULATED READY' 'simulated H100, root' -v "$work/root:/report" -- --gpu-simulate h100-ollama
  expect 0 'SIMULATED READY' 'simulated H100, uid 1000, no capability, read-only root directory' \
    $small -e HOME=/tmp -v "$work/user:/report" -- --gpu-simulate h100-ollama
  expect 1 'started without the GPU' 'simulated container without GPUs' \
    -- --gpu-simulate h100-ollama:kernel.container.no_gpus --gpu-until closure
  expect 4 'ERROR' 'an option that does not exist' -- --gpu-no-such-option
}
for who in root user; do
  if ! grep -q '"verdict": *"ready"' "$work/$who/verdict.json"; then
    status=1
    echo "NOT as expected: no green verdict.json in the directory that $who mounted at /report" >&2
  fi
done
exit $status
