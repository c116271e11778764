"""Measurements against peers: `python -m benchmarks [names]`, one file per benchmark.

A benchmark is a module of this package with a docstring, whose first line the list shows, and a function
`run(rounds: int)` that returns a `harness.Report`, or an iterator of what has its `show` and `save`. It asserts first
that both sides compute the same, then measures them in turn: functions with `harness.measure_in_turn`, whole training
runs as processes with `tools.turns.in_turn`, sides that take long to get ready as `tools.workers`. `training`,
`decoding` and `gpu` have options of their own: `python -m benchmarks.training --help`.
"""
