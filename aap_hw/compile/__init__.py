"""From an exported network to compiled kernels.

``keys`` name a kernel and its device, ``families`` say what a key means, ``front`` finds a program's kernels, ``code``
is what ``cpu`` and ``gpu`` share, and ``library`` makes a network's library of them.
"""
