"""The parts of the benchmark `kills`: a training that may be killed, and who kills and resumes it."""
