"""The sides of the training benchmarks, one process each: `python -m benchmarks.peers.<side> TASK.json`.

A side reads its task, trains for `warmup + steps` steps and prints one line of JSON, a `Measured`.
"""
