"""The parts of the speed benchmarks `step`, `orthogonalize`, `quantile` and `sharing`."""
