"""Runs and tables for people to look at: one HTML file that needs no network."""
