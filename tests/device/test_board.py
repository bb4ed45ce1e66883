"""Proves that a board behind RPC is a device like this machine, and that each way in which it can fail is one sentence.

The boards are real servers on the loopback address.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm
from torch import nn

from aap_hw.compile.library.lowering import compile_network
from aap_hw.device import DeviceProfile, load_profile
from aap_hw.device.board import BoardLost, RemoteLibrary
from aap_hw.device.connection import Device, LocalDevice
from aap_hw.device.profile import TargetSpec
from aap_hw.errors import UserError
from tests.device import servers
from tests.device.pretended_gpu import NAME, pretended_gpu
from tests.device.reaching import connect
from tests.needs import needs_cross_compiler

# What ELF calls the CPUs of libraries.
E_MACHINE = {"x86_64": 62, "aarch64": 183}
IMAGE = np.arange(8, dtype="float32").reshape(1, 2, 2, 2)

of_another_kind = pytest.mark.skipif(platform.machine() == "aarch64", reason="this machine is of the board's kind")


def reached(where: str, timeout_s: float = 20.0) -> DeviceProfile:
    profile = load_profile("x86")
    patient = profile.connect.model_copy(update={"timeout_s": timeout_s})
    return profile.model_copy(update={"connect": patient}).reached_by(where)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library whose main function doubles what it is given."""
    model = nn.Conv2d(2, 2, 1, bias=False)
    model.weight.data = 2 * torch.eye(2).reshape(2, 2, 1, 1)
    path = tmp_path_factory.mktemp("library") / "twice.so"
    compile_network(model, torch.zeros(1, 2, 2, 2), LocalDevice(load_profile("x86")).target, path)
    return path


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with servers.board() as server:
        board = connect(reached(f"rpc://127.0.0.1:{server.port}"))
        yield board
        board.close()


def test_library_runs_there_and_is_timed(device: Device, library: Path) -> None:
    loaded = device.load(library)
    for image in (IMAGE, -IMAGE):
        loaded.set_inputs("main", [image])
        assert np.array_equal(loaded.run("main")[0], 2 * image)
    samples = loaded.time_us("main", number=3, repeats=4)
    assert len(samples) == 4
    assert all(0 < us < 1e6 for us in samples)


def test_several_outputs_come_back_in_order(device: Device, tmp_path: Path) -> None:
    class Several(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return 2 * x, x.sum((2, 3)), x, 3 * x

    compile_network(
        Several(), torch.from_numpy(IMAGE), LocalDevice(load_profile("x86")).target, tmp_path / "several.so"
    )
    loaded = device.load(tmp_path / "several.so")
    loaded.set_inputs("main", [IMAGE])
    expected = [2 * IMAGE, IMAGE.sum((2, 3)), IMAGE, 3 * IMAGE]
    assert all(map(np.array_equal, loaded.run("main"), expected))
    assert len(loaded.run("main")) == len(expected)


@pytest.mark.parametrize("type_", ["bfloat16", "float32", "uint8"])
def test_inputs_of_any_type_are_sent_only_if_they_are_others_than_before(type_: str) -> None:
    sent: list[object] = []
    loaded = RemoteLibrary(lambda *request, seconds: sent.append(request), 0)
    for value in (1, 1, 2):
        loaded.set_inputs("main", [np.full((2, 3), value, type_)])
    assert len(sent) == 2


def test_server_on_this_machine_is_described_as_this_machine(device: Device) -> None:
    assert device.describe() == LocalDevice(load_profile("x86")).describe()


def test_file_of_the_board_is_read_as_it_is(device: Device, tmp_path: Path) -> None:
    read = device.read
    assert read("/proc/version") == Path("/proc/version").read_bytes()
    content = bytes(range(256)) * 40  # more than is read at once
    (tmp_path / "file").write_bytes(content)
    assert read(str(tmp_path / "file")) == content
    assert read("/no/such/file") is None


def test_file_of_the_board_may_be_at_any_path(device: Device, tmp_path: Path) -> None:
    path = tmp_path / "jürgen" / ("a" * 200) / ("b" * 200)
    path.parent.mkdir(parents=True)
    path.write_text("here")
    assert device.read(str(path)) == b"here"
    assert device.read("/" + "a" * 5000) is None


def test_library_for_another_cpu_is_refused_by_name_and_the_board_stays_of_use(
    device: Device, library: Path, tmp_path: Path
) -> None:
    here = platform.machine()
    (there,) = E_MACHINE.keys() - {here}
    other = bytearray(library.read_bytes())
    assert other[18:20] == E_MACHINE[here].to_bytes(2, "little")
    other[18:20] = E_MACHINE[there].to_bytes(2, "little")
    (tmp_path / "other.so").write_bytes(other)
    with pytest.raises(UserError, match=rf"runs {here} programs, and the library is for {there}; correct \[target\]"):
        device.load(tmp_path / "other.so")
    loaded = device.load(library)
    loaded.set_inputs("main", [IMAGE])
    assert np.array_equal(loaded.run("main")[0], 2 * IMAGE)


@of_another_kind
@needs_cross_compiler
def test_board_of_another_cpu_than_the_profile_means_is_refused() -> None:
    with (
        servers.board() as server,
        pytest.raises(UserError, match=r"runs x86_64 programs, and the library is for aarch64"),
    ):
        connect(load_profile("rpi4").reached_by(f"rpc://127.0.0.1:{server.port}"))


@of_another_kind
def test_linker_that_is_missing_is_said_of_a_board_that_answers_and_the_board_is_free_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with servers.board() as server:
        with monkeypatch.context() as without:
            without.setenv("PATH", "/nowhere")
            with pytest.raises(UserError, match=r"install it with: sudo apt-get install g\+\+-aarch64-linux-gnu$"):
                connect(load_profile("rpi4").reached_by(f"rpc://127.0.0.1:{server.port}"))
        connect(reached(f"rpc://127.0.0.1:{server.port}", timeout_s=5.0)).close()


@pytest.fixture
def full_disk() -> Iterator[servers.Server]:
    # Large enough for the first file, not for a network.
    with servers.board(largest_file=40_000) as server:
        yield server


def test_full_disk_is_noticed_before_anything_runs(full_disk: servers.Server, library: Path, tmp_path: Path) -> None:
    board = connect(reached(f"rpc://127.0.0.1:{full_disk.port}"))
    padded = tmp_path / "padded.so"
    padded.write_bytes(library.read_bytes() + bytes(60_000))
    with pytest.raises(UserError, match=r"the disk of the board is full.*free some space"):
        board.load(padded)
    board.close()


def test_closed_port_is_answered_with_the_command_that_opens_it() -> None:
    port = servers.free_port()
    with pytest.raises(BoardLost, match=rf"nothing listens at 127.0.0.1:{port}; start .*rpc_server .*--port {port}$"):
        connect(reached(f"rpc://127.0.0.1:{port}"))


def test_wrong_key_is_named_and_the_name_of_the_device_needs_none() -> None:
    with servers.board("x86") as server:
        with pytest.raises(BoardLost, match=r"is not registered as 'rpi5'; give the key"):
            connect(reached(f"rpc://127.0.0.1:{server.port}/rpi5"))
        connect(reached(f"rpc://127.0.0.1:{server.port}")).close()


@pytest.mark.parametrize("how", ["kill", pytest.param("stop", marks=pytest.mark.slow)])  # a hanging one is waited for
def test_board_that_dies_or_hangs_is_given_up_in_time(library: Path, how: str) -> None:
    with servers.board() as server:
        board = connect(reached(f"rpc://127.0.0.1:{server.port}", timeout_s=5.0))
        loaded = board.load(library)
        loaded.set_inputs("main", [IMAGE])
        getattr(server, how)()
        why = "the connection broke" if how == "kill" else "it did not answer for 5 s"
        with pytest.raises(BoardLost, match=rf"the board at 127.0.0.1:{server.port} cannot be used: .*({why})"):
            loaded.run("main")
        assert not board._process.is_alive()


@pytest.mark.slow
def test_another_version_of_tvm_on_the_board_is_refused_with_the_command_that_installs_this_one(
    tmp_path: Path,
) -> None:
    package, copy = Path(tvm.__file__).parent, tmp_path / "tvm"
    shutil.copytree(package, copy, symlinks=True, ignore=shutil.ignore_patterns("*.so", "3rdparty", "include", "src"))
    shutil.copy(package / "lib" / "libtvm_runtime.so", copy / "lib")
    version = copy / "_version.py"
    version.write_text(version.read_text().replace(tvm.__version__, "0.26.0"))
    here = re.escape(tvm.__version__)
    with (
        started_with(PYTHONPATH=str(tmp_path), TVM_USE_RUNTIME_LIB="1") as port,
        pytest.raises(UserError, match=rf"runs TVM 0.26.0 and here it is {here}; install .*=={here}' apache-tvm-ffi=="),
    ):
        connect(reached(f"rpc://127.0.0.1:{port}"))


def test_board_with_a_gpu_is_described_by_the_gpu_as_on_the_machine_itself(tmp_path: Path) -> None:
    fields = {"kind": "cuda", "arch": "sm_90", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v2"}
    profile = load_profile("cuda").model_copy(update={"target": TargetSpec(**fields)})
    with started_with(**pretended_gpu(tmp_path)) as port:
        board = connect(profile.reached_by(f"rpc://127.0.0.1:{port}"))
        assert board.describe().cpu == NAME
        board.close()


@contextmanager
def started_with(**environment: str) -> Iterator[int]:
    """The port of a server that begins with these variables, as a person starts it."""
    port = servers.free_port()
    command = [sys.executable, "-m", "tvm.exec.rpc_server", "--host=127.0.0.1", f"--port={port}"]
    with subprocess.Popen(
        [*command, f"--port-end={port + 1}"],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as server:
        try:
            assert server.stderr is not None
            while b"bind to" not in server.stderr.readline():
                assert server.poll() is None
            yield port
        finally:
            os.killpg(server.pid, 9)
