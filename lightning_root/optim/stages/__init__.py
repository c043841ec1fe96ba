"""The stages of a step, in their order: each a file with its formula, its state, its plain twin."""
