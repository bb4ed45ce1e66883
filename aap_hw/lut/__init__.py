"""Latency tables: their file, their measuring and what they predict."""
