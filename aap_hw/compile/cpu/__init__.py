"""Kernels for CPUs: loops, vectors and register tiles written out."""
