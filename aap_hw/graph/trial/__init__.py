"""A trial cut: whether a model's own code follows when its channels get fewer, and what has to be set if not."""
