"""What a key means, family by family: shapes and arithmetic, without TVM and without the program it came from."""
