"""The parts of the benchmark `mutants`: which mutants are tried, what they are, what was found."""
