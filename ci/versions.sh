#!/bin/bash
# The tests on every Python of this machine (3.10 and newer), with the oldest and the newest supported pytest.
# Usage: ci/versions.sh [pytest arguments]; default: the core, collection, the suites and users' own tests.
# VERSIONS limits the Pythons, e.g. VERSIONS="3.10 3.13".
set -uo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[ $# -gt 0 ] || set -- tests/plugin/test_collection.py tests/plugin/test_suites.py tests/plugin/test_users_tests.py \
  tests/plugin/test_options.py tests/test_engine.py tests/test_verdict.py tests/test_context.py tests/test_resolver.py
failed=0
seen=
for version in ${VERSIONS:-3.10 3.11 3.12 3.13 3.14}; do
  python=
  # pyenv's shims answer only for the version that is switched on: look behind them too.
  for candidate in "$(command -v "python$version")" "$HOME/.pyenv/versions/$version".*/bin/python3; do
    if "$candidate" -c '' 2>/dev/null; then
      python=$candidate
      break
    fi
  done
  [ -n "$python" ] || continue
  seen="$seen $version"
  for pytest in "pytest==8.0.*" "pytest"; do
    venv="$work/$version-${pytest//[^0-9a-z]/}"
    "$python" -m venv "$venv"
    # The oldest pytest needs plugins of its own time: the resolver finds them.
    if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$here[dev]" "$pytest"; then
      echo "FAILED  python $version, $pytest: cannot be installed"
      failed=1
      continue
    fi
    line=$("$venv/bin/python" -m pytest -q -p no:cacheprovider "$@" 2>&1 | tail -n 1)
    case "$line" in *failed* | *error* | *"no tests ran"*) failed=1 ;; *passed*) ;; *) failed=1 ;; esac
    echo "python $version, $("$venv/bin/python" -m pytest --version): $line"
  done
done
echo "Pythons found:${seen:- none}"
[ -n "$seen" ] || exit 1
exit "$failed"
