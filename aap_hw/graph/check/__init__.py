"""Whether a network that was cut computes what it should."""
