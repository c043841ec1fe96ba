"""Complete small programs, each about one way to ROOT, and pages about what is larger than that."""
