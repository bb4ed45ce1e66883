"""Checkpoints of other people's training scripts: read without running anything in them, and matched with a network.

`pickled` reads pickles, `files` every kind of file, `storages` and `tensors` the numbers in them, `contents` finds
every tensor under its name, `candidates` those that fit a network, and `remarks` says what differs.
"""
