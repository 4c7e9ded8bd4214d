"""Benchmarks, which print a table and write JSON: `python -m recipes bench NAME`."""

BENCHMARKS = ("adapters", "forms", "generation", "mixed", "evaluation", "recommender", "prepare")
"""Names of the benchmarks. Each is a module of this package with a function `run(config)`."""
