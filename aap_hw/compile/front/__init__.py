"""From an exported program to the kernels of a network, whose widths are functions of the group widths."""
