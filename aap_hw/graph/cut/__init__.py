"""Cutting a model: its parameters, its attributes, and the factors that attention computes from widths."""
