"""Which of TVM's packages a board needs: in the versions that are installed here, in the words of pip."""

import shlex
from importlib.metadata import version


def tvm_packages(extra: str = "") -> str:
    """What follows ``pip install`` in a shell; an ``extra`` is ``[rpc]`` for a board that runs a server.

    The foreign function interface is named, too: its binary interface changes between releases, and TVM's own package
    takes any later one.
    """
    return shlex.join([f"apache-tvm{extra}=={version('apache-tvm')}", f"apache-tvm-ffi=={version('apache-tvm-ffi')}"])
