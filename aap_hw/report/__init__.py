"""Runs and tables for people to look at: one HTML file that needs no network."""

from aap_hw.callable_package import make_callable

make_callable(__name__)
