"""Fuzzing: what a stranger can send us, sent in every shape a machine can think of (docs/fuzzing.md)."""
