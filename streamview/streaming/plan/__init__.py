"""Choosing how to run before running: the size of a step within a memory budget, what is saved or recomputed, and the time it takes."""
