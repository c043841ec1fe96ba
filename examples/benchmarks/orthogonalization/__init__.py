"""The parts of `examples.benchmarks.orthogonalization_error`: measures, claims, page, pictures."""
