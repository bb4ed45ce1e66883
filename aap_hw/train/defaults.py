"""How a network is trained unless told otherwise. Numbers alone, so that a command's help need not load what trains."""

# Short, as networks are that were trained before and lost some filters.
EPOCHS, LEARNING_RATE = 4, 0.05
# Share of the loss that is the distance to the unpruned network's outputs, where it teaches.
DISTILLATION = 0.5
