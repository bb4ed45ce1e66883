"""From an exported network to compiled kernels: keys, schedules, partition and the whole library."""
