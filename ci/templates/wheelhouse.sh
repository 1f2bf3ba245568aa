#!/bin/sh
# An offline install: run this where there is a network, copy the directory, run the printed command on the GPU host.
#
#   ci/templates/wheelhouse.sh DIRECTORY [PYTHON]      wheels of this checkout and everything it needs, for PYTHON
#
# PYTHON must be the version (3.10, 3.11, ...) and the platform of the GPU host: wheels are built for both.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
to=${1:?usage: wheelhouse.sh DIRECTORY [PYTHON]}
python=${2:-python3}
mkdir -p "$to"
# From a copy: setuptools leaves build/ beside the sources, and what lies there gets into later wheels.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
(cd "$here" && tar -cf - --exclude=__pycache__ pyproject.toml README.md LICENSE pytest_gpudiscovery suites) | tar -xf - -C "$copy"
"$python" -m pip wheel --quiet --disable-pip-version-check --wheel-dir "$to" "$copy"
(cd "$to" && sha256sum -- *.whl >SHA256SUMS)
echo "$(find "$to" -name '*.whl' | wc -l) wheels in $to. On the GPU host:"
echo "  cd $(basename "$to") && sha256sum --check --quiet SHA256SUMS &&"
echo "  python3 -m venv /opt/gpu-discovery && /opt/gpu-discovery/bin/pip install --no-index --find-links . pytest-gpudiscovery &&"
echo "  ln -s /opt/gpu-discovery/bin/gpu-discovery /usr/local/bin/    # where ci/templates/systemd looks for it"
