"""Measurements against peers: `python -m benchmarks [names]`, one file per benchmark.

A benchmark is a module of this package with a docstring, whose first line the list shows, and a
function `run(rounds: int) -> Report`. It asserts first that both sides compute the same, then
measures them in turn with `harness.measure_in_turn`.
"""
