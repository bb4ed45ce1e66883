"""The package imports lightly; an installed wheel finds its profiles and tables without the checkout."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import aap_hw
from aap_hw.device.packages import tvm_packages
from aap_hw.resources import resource_dirs

ROOT = Path(__file__).resolve().parent.parent


def test_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Chanel'"):
        _ = aap_hw.Chanel
    assert set(aap_hw.__all__) == set(dir(aap_hw))


def test_checkout_prefers_its_own_folders(tmp_path: Path) -> None:
    assert resource_dirs("device_profiles")[0] == ROOT / "device_profiles"
    package = tmp_path / "aap_hw"
    for folder in (package / "_lut", tmp_path / "lut"):
        folder.mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    assert resource_dirs("lut", package) == [tmp_path / "lut", package / "_lut"]


def test_folder_beside_an_installed_package_is_not_taken_for_ours(tmp_path: Path) -> None:
    package = tmp_path / "site-packages" / "aap_hw"
    (package / "_lut").mkdir(parents=True)
    (package.parent / "lut").mkdir()
    assert resource_dirs("lut", package) == [package / "_lut"]
    assert resource_dirs("device_profiles", package) == []


def pinned() -> dict[str, str]:
    """The packages of which exactly one version will do."""
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return dict(each.split("==") for each in requirements if "==" in each)


def test_versions_that_must_agree_are_pinned_exactly() -> None:
    assert pinned().keys() == {"torch", "torchvision", "apache-tvm", "apache-tvm-ffi", "torchao"}


def test_pages_and_hints_say_the_pinned_versions_of_both_packages_that_a_board_needs() -> None:
    versions, found = pinned(), 0
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")]
    for path in [*pages, *(ROOT / "aap_hw").rglob("*.py")]:
        words = re.findall(r"(apache-tvm(?:-ffi)?)[^\s=]*==([\w.]*)", path.read_text("utf-8"))
        names = [name for name, _ in words]
        assert names.count("apache-tvm") == names.count("apache-tvm-ffi"), f"{path} names one without the other"
        assert all(version == versions[name] for name, version in words if version[:1].isdigit()), path
        found += len(names) // 2
    assert found >= 7
    assert tvm_packages("[rpc]") == (
        f"'apache-tvm[rpc]=={versions['apache-tvm']}' apache-tvm-ffi=={versions['apache-tvm-ffi']}"
    )


@pytest.mark.slow
def test_installed_wheel_finds_profiles_and_tables(tmp_path: Path) -> None:
    options = ["--no-deps", "--disable-pip-version-check", "--no-build-isolation", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options],
        check=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    (wheel,) = tmp_path.glob("aap_hw-*.whl")
    installed = tmp_path / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)

    for kind in ("device_profiles", "lut"):
        shipped = {path.name: path.read_bytes() for path in (installed / "aap_hw" / f"_{kind}").iterdir()}
        assert shipped == {path.name: path.read_bytes() for path in (ROOT / kind).iterdir()}
    assert (installed / "aap_hw" / "py.typed").is_file()

    script = "import aap_hw; from aap_hw.cli.main import main; print(aap_hw.__file__); main(['devices', '--json'])"
    child = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    location, _, devices = child.stdout.partition("\n")
    assert Path(location).is_relative_to(installed)
    assert '"name": "rpi5"' in devices
