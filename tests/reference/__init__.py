"""The textbook twin: slow, plain, one matrix at a time."""
