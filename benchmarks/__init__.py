"""Measurements of speed; each `bench_*` module prints a table and writes `out/*.json`."""
