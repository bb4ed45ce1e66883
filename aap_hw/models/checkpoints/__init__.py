"""Checkpoints of other people's training scripts: read without running them, and matched with a network.

`pickled` reads what a pickle says, `files` the kinds of files there are, `storages` and `tensors` the numbers in them,
`contents` finds every tensor under its name, `candidates` those that a network takes, and `remarks` says what differs.
"""
