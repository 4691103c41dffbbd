"""Benchmarks: `make bench` runs `benchmarks.cost`."""
