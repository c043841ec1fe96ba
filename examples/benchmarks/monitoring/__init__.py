"""How the cost of `ROOTMonitor` is measured; see `examples.benchmarks.monitor_overhead`."""
