"""From an exported program to the kernels of a network, with widths that are functions of the groups' widths."""
