"""The programs that a bundle brings along to be run with: copied into it as they are, and built or started there."""
