"""Estimated latencies of kernels on a CPU that is not at hand, from their code, its pipeline and its memory.

Nothing runs and LLVM compiles nothing. Estimates are no measurements: how far off they are is known for the machine on
which the correction was learned, and for no other.
"""
