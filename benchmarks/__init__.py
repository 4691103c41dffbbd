"""Benchmarks: `make bench` runs `benchmarks.cost`; `benchmarks.size` measures the run of a whole slide."""
