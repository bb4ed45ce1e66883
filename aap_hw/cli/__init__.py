"""The command line: one module per sub-command, each parsing, calling the library and printing."""
