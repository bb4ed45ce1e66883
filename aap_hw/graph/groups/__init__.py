"""Channel groups, read off the labels: what is cut together, how wide it is, what kind it is of."""
