"""What the training benchmarks share: sentences, turns of processes, operation counts, the ceiling, the chart."""
