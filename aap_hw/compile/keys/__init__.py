"""What names a compiled kernel, and the device that it is compiled for."""
