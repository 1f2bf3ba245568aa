"""Stages in the order that a person reads; see spec.py for what a stage is."""
