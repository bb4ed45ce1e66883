"""What ``aap-hw profile`` could measure, for whoever does not say which network."""

from __future__ import annotations

import shlex
from pathlib import Path

from aap_hw.cli.output import tell


def show_choices(device: str | None, out: str | None) -> None:
    """List the networks that have a name, how others are given, and what the device's table holds already.

    Raises UserError if there is no such device profile.
    """
    from aap_hw.device import load_profile
    from aap_hw.models import zoo

    profile = None if device is None else load_profile(device)
    tell("which network? aap-hw profile times each of its kernels at several widths; name one with --model:")
    for name in zoo.names():
        tell(f"  {name:24}{'x'.join(map(str, zoo.entry(name).input_shape))}")
    tell(f"  {'torchvision:NAME':24}any of torchvision's, such as torchvision:efficientnet_b0")
    tell(f"  {'timm:NAME':24}any of timm's, such as timm:mobilenetv4_conv_small (pip install 'aap-hw[timm]')")
    tell(f"  {'FILE.py:FUNCTION':24}yours, if the function returns it; add --input 3x224x224")
    tell(f"  {'FILE.pt2':24}yours, as torch.export.save wrote it")
    if profile is None:
        tell("and which device? 'aap-hw devices' lists them")
    else:
        table = Path("lut") / f"{profile.name}.json" if out is None else Path(out)
        if table.exists():
            tell(f"{table} holds {_networks(table)} already")
    tell(f"for example: aap-hw profile --device {shlex.quote(device or 'x86')} --model mobilenetv2")


def _networks(table: Path) -> str:
    from aap_hw.lut.finding import find_table

    return ", ".join(name.text for name in find_table(str(table)).networks) or "no whole network"
