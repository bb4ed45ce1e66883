"""A model as the program that `torch.export` makes of it: what it takes, calls, keeps and returns."""
