#!/bin/sh
# The main job on this machine: the gate, up to the CUDA runtime where there is no Ollama. Where there is no NVIDIA GPU
# it runs on the simulated H100 with a simulated Ollama and says so; the gate itself never falls back to a simulation.
# Arguments go to the gate.
. "$(dirname "$0")/env.sh"
if ! grep -qs 0x10de /sys/bus/pci/devices/*/vendor; then
  echo "================================================================================"
  echo "  No NVIDIA GPU on this machine: what follows is the SIMULATED H100, no hardware."
  echo "================================================================================"
  set -- --gpu-simulate h100-ollama "$@"
elif ! command -v ollama >/dev/null 2>&1; then
  set -- --gpu-until runtime "$@"
fi
exec "$venv/bin/gpu-discovery" gate "$@"
