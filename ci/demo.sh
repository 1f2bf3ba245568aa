#!/bin/sh
# The main job on this machine: the gate up to the CUDA runtime. Where there is no NVIDIA GPU it runs on the simulated
# H100 and says so; the gate itself never falls back to a simulation. Arguments go to the gate.
. "$(dirname "$0")/env.sh"
simulate=
if ! grep -qs 0x10de /sys/bus/pci/devices/*/vendor; then
  echo "================================================================================"
  echo "  No NVIDIA GPU on this machine: what follows is the SIMULATED H100, no hardware."
  echo "================================================================================"
  simulate="--gpu-simulate h100"
fi
# shellcheck disable=SC2086  # two words on purpose
exec "$venv/bin/gpu-discovery" gate $simulate --gpu-until runtime "$@"
