"""The parts of the benchmark `kills`: a training that is killed, and who kills and resumes it."""
