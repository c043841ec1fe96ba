"""The parts of the speed benchmarks `step`, `orthogonalize` and `quantile`."""
