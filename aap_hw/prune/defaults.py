"""What a run does unless told otherwise. Numbers alone, so that a command's help need not load what a run needs."""

from __future__ import annotations

# Steps to a budget, and the most steps that an accuracy drop alone may take.
ROUNDS, MOST_ROUNDS = 3, 10
# Of each round's training.
EPOCHS, LEARNING_RATE = 4, 0.05
