"""Where the data folders of the project are, in a checkout and in an installed wheel.

Only finds folders; what is in them is read by `aap_hw.device` (profiles) and `aap_hw.lut` (tables).
"""

from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).resolve().parent


def resource_dirs(kind: Literal["device_profiles", "lut"], package: Path = _PACKAGE) -> list[Path]:
    """List the existing folders that hold a kind of data, the one to prefer first.

    Parameters
    ----------
    kind
        Name of the folder at the top of the repository. In a wheel the same files are in the package, under
        this name with an underscore before it (see ``force-include`` in ``pyproject.toml``).
    package
        Folder of the `aap_hw` package.
    """
    folders = [package / f"_{kind}"]
    # Beside an installed package there are other people's packages: only a checkout has the project file.
    if (package.parent / "pyproject.toml").is_file():
        folders.insert(0, package.parent / kind)
    return [folder for folder in folders if folder.is_dir()]
