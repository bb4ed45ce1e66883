"""What the code of both kinds of devices is made of: a kernel's arguments, and expressions of single values."""
