#!/bin/bash
# As root: the tests whose outcome depends on who runs them, again as uid 65534. Another identity is another host: no
# mounts, other permissions, no other user to probe as. Needs an interpreter and a copy of the tree that it may read.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
public=$(mktemp -d)
trap 'rm -rf "$public"' EXIT
chmod 755 "$public"
as_nobody() { setpriv --reuid=65534 --regid=65534 --clear-groups env -C "$public/repo" HOME="$public/home" "$@"; }

python=
for candidate in "${PYTHON:-}" /usr/bin/python3 /usr/local/bin/python3 "$(command -v python3)"; do
  if [ -n "$candidate" ] && setpriv --reuid=65534 --regid=65534 --clear-groups "$candidate" -c '' 2>/dev/null; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  echo "ci/unprivileged.sh: no python3 that uid 65534 may run; set PYTHON to one" >&2
  exit 1
fi
mkdir "$public/repo" "$public/home"
git -C "$here" ls-files -z --cached --others --exclude-standard | tar -C "$here" --null -T - -c | tar -C "$public/repo" -x
chown -R 65534:65534 "$public/home" "$public/repo"
"$python" -m venv "$public/venv"
"$public/venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$public/repo[dev]"
chmod -R a+rX "$public"
echo "--- as uid 65534, $("$python" --version)"
run() {
  as_nobody timeout --kill-after=60 1800 "$public/venv/bin/python" -m pytest -q -n "${JOBS:-2}" --dist load \
    --max-worker-restart=0 -o timeout=600 -rs -p no:cacheprovider "$@" || {
    code=$?
    [ "$code" != 124 ] || echo "ci/unprivileged.sh: no end within 30 minutes of: $*" >&2
    return "$code"
  }
}
run tests/service/test_unit_files.py tests/test_context.py tests/supervise tests/probes tests/simulate/test_conformance.py
# Of the fault table the rows in which permissions, identity or what a user may read decide.
run tests/faults tests/matrix/test_matrix.py -k "node or env or kernel or libcuda or tmpdir or cuinit or faults"
