"""Tests of the gate itself; what needs a GPU is proven on real hosts (docs/evidence)."""
