"""Proves that a user without a home folder has one to be asked for, and where caches are."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from types import SimpleNamespace

import pytest

from aap_hw.home import cache_folder, provide_home


def test_user_without_a_name_and_a_home_gets_the_root_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(number: int) -> None:
        raise KeyError(f"uid not found: {number}")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(RuntimeError):
        Path.home()
    provide_home()
    assert Path.home() == Path("/")


def test_home_that_is_known_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    provide_home()
    assert os.environ["HOME"] == "/home/somebody"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", lambda number: SimpleNamespace(pw_dir="/home/somebody"))
    provide_home()
    assert "HOME" not in os.environ


@pytest.mark.parametrize("told", ["", "~/.cache", "cache"])
def test_place_for_caches_that_is_no_absolute_path_is_none(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("XDG_CACHE_HOME", told)
    assert cache_folder("kernels") == Path("/home/somebody/.cache/aap-hw/kernels")
