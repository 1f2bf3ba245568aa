# Sourced by the scripts beside it: a virtual environment in .venv with this checkout installed, made once.
# PYTHON chooses the interpreter (default python3); EXTRAS what is installed beside the package.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
venv=${VENV:-"$here/.venv"}
extras=${EXTRAS:-}
stamp="$venv/.installed-$(printf '%s' "$extras" | tr ',' '-')"

if [ ! -x "$venv/bin/python" ]; then
  "${PYTHON:-python3}" -m venv "$venv"
fi
if [ ! -e "$stamp" ] || [ "$here/pyproject.toml" -nt "$stamp" ]; then
  # No C compiler here: the simulated driver stack is then built by zig, which comes as a wheel.
  command -v cc >/dev/null 2>&1 || extras="${extras:+$extras,}simulate"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$here${extras:+[$extras]}"
  touch "$stamp"
fi
