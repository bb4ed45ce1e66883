"""Options that several sub-commands ask for in the same words, one subject a file.

What only one sub-command asks for is in that command's own file.
"""
