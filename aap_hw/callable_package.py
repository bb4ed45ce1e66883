"""Packages that are functions too: ``aap_hw.prune(...)`` is the function, ``aap_hw.prune.rounds`` the module below it.

Python binds a sub-package to its name in the package above it as soon as anything of it is imported, and so takes the
name from a function that is called the same. A package that can be called answers to both.
"""

import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._function()(*arguments, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function())

    def _function(self) -> Callable[..., Any]:
        name = self.__name__.rpartition(".")[2]
        function: Callable[..., Any] = getattr(importlib.import_module("aap_hw.api"), name)
        return function


def make_callable(package: str) -> None:
    """Let a package be called: what is called is the function of its name in ``aap_hw.api``."""
    sys.modules[package].__class__ = _CallablePackage
