"""Labelled images, and the loop that trains and evaluates on them."""
