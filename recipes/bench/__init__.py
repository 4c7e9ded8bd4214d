"""Benchmarks: programs that print a table and write JSON. `python -m recipes bench NAME`."""

BENCHMARKS = ("adapters", "generation", "mixed", "evaluation", "recommender", "prepare")
"""Each a module of this package with a `run(config)`."""
