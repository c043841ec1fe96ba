"""Checkpoints that commit 9cd8273 wrote, and what made them; `write.py` says how to make others.

Each file holds the weights and the optimizer's state after some steps, and both after some more, as
that commit computed them. Weights to start from and gradients come from whole numbers
(`cases.numbers`), so that they are the same on every machine and under every version of torch.
"""
