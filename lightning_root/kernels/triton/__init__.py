"""Kernels for CUDA devices, in Triton. Importing this package does not import Triton."""
