"""Proves of both programs in a bundle that they print what PyTorch computes, and that they load nothing they refuse.

Each is run as its reader would run it: ``run.py`` as a script without PyTorch and aap-hw, ``run.cc`` built with the
line in its own head. Whether something was loaded is told by the library itself, which then leaves a file behind.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm

import aap_hw.deploy.runners
from aap_hw.compile.keys.target import device_target
from aap_hw.deploy.runners import build_command, run
from tests.deploy.tiny import (
    Several,
    SeveralInputs,
    captioned,
    edit_manifest,
    make_bundle,
    make_int8_bundle,
    replace_file,
    telltale_library,
)
from tests.needs import ARM_LINKER, needs_cross_compiler

RUNNERS = Path(aap_hw.deploy.runners.__file__).parent
PACKAGES = Path(sysconfig.get_paths()["purelib"])
# Nothing but what a board has; what is in memory at the end is part of the promise.
AS_ON_A_BOARD = """
import runpy, sys
sys.modules["torch"] = sys.modules["aap_hw"] = None
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    assert "libtvm_compiler" not in open("/proc/self/maps").read()
    assert "tvm" not in sys.modules
"""


@dataclass
class Runner:
    """One of the two programs."""

    name: str
    command: list[str]

    def run(self, bundle: Path, *options: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "LOADED_MARKER": str(bundle / "loaded")}
        return subprocess.run(
            [*self.command, str(bundle), *options], capture_output=True, text=True, timeout=60, env=environment,
            cwd=bundle.parent, check=False,
        )  # fmt: skip


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runner")
    shutil.copy(RUNNERS / "run.cc", folder)
    subprocess.run([*build_command(PACKAGES), "-Wall"], cwd=folder, check=True)
    return folder / "run"


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    return folder, make_bundle(folder)


@pytest.fixture(params=["run.py", "run.cc"])
def runner(request: pytest.FixtureRequest, built: Path, original: tuple[Path, np.ndarray]) -> Runner:
    if request.param == "run.cc":
        return Runner("run.cc", [str(built)])
    return Runner("run.py", [sys.executable, "-P", "-c", AS_ON_A_BOARD, str(original[0] / "run.py")])


@pytest.fixture
def bundle(original: tuple[Path, np.ndarray], tmp_path: Path) -> Path:
    return Path(shutil.copytree(original[0], tmp_path / "bundle"))


def test_outputs_are_those_of_pytorch(runner: Runner, original: tuple[Path, np.ndarray]) -> None:
    folder, expected = original
    done = runner.run(folder, "--print", "--time")
    assert (done.returncode, done.stderr) == (0, "")
    *rows, verdict, timing = done.stdout.splitlines()
    np.testing.assert_allclose([[float(v) for v in row.split()] for row in rows], expected, rtol=0, atol=1e-5)
    assert np.ptp(expected, axis=0).min() > 1e-2, "outputs that do not depend on the image prove nothing"
    assert re.fullmatch(r"3 reference inputs: largest difference from PyTorch \S+, within 1e-05", verdict)
    assert re.fullmatch(r"\d+\.\d{3} ms a call, median of 50", timing)


@pytest.fixture(scope="session")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    folder = tmp_path_factory.mktemp("bundles") / "several"
    return folder, make_bundle(folder, module=Several())


def test_several_outputs_are_those_of_pytorch(runner: Runner, several: tuple[Path, np.ndarray]) -> None:
    folder, expected = several
    names = [output["name"] for output in json.loads((folder / "manifest.json").read_text())["outputs"]]
    assert names == ["output_first", "output_scores", "output_again"]
    done = runner.run(folder, "--print", "--time")
    assert (done.returncode, done.stderr) == (0, "")
    rows, verdicts = done.stdout.splitlines()[:3], done.stdout.splitlines()[3:-1]
    np.testing.assert_allclose([[float(v) for v in row.split()] for row in rows], expected, rtol=0, atol=1e-5)
    for name, verdict in zip(names, verdicts, strict=True):
        assert re.fullmatch(rf"3 reference inputs, {name}: largest .* PyTorch \S+, within 1e-05", verdict)


@pytest.fixture(scope="session", params=["float32", "pixels", "mixed"])
def in_int8(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    folder = tmp_path_factory.mktemp("bundles") / request.param
    floats = ("4",) if request.param == "mixed" else ()
    return folder, make_int8_bundle(folder, pixels=request.param == "pixels", floats=floats)


def test_outputs_in_int8_are_those_of_the_quantised_network(runner: Runner, in_int8: tuple[Path, np.ndarray]) -> None:
    folder, expected = in_int8
    done = runner.run(folder, "--print", "--time")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [[float(v) for v in row.split()] for row in done.stdout.splitlines()[:3]]
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-5)
    assert np.ptp(expected, axis=0).min() > 2e-3, "outputs that do not depend on the image prove nothing"


def test_only_bytes_are_taken_as_pixels(tmp_path: Path) -> None:
    make_int8_bundle(tmp_path / "bundle", pixels=True)
    script = (
        "import numpy as np; from run import Model; model = Model('.'); whole = np.full((1, 12, 12, 3), 7)\n"
        "print(np.array_equal(model(whole), model(whole.astype(np.uint8))))\n"
        "for wrong in (whole + 0.5, whole + 256, whole - 8, whole.transpose(0, 3, 1, 2)):\n"
        "    try: model(wrong)\n"
        "    except ValueError as refusal: print(refusal)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path / "bundle", capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == [
        "True",
        *["the network takes image as uint8, with values up to 255"] * 3,
        "the network takes images of shape (1, 12, 12, 3), not (1, 3, 12, 12)",
    ]


@pytest.fixture(scope="session")
def with_caption(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    folder = tmp_path_factory.mktemp("bundles") / "captioned"
    return folder, make_bundle(folder, module=SeveralInputs(), samples=captioned())


def test_several_inputs_of_several_types_are_taken(runner: Runner, with_caption: tuple[Path, np.ndarray]) -> None:
    folder, expected = with_caption
    done = runner.run(folder, "--print")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [[float(v) for v in row.split()] for row in done.stdout.splitlines()[:3]]
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-5)
    assert np.ptp(expected, axis=0).min() > 1e-2, "outputs that do not depend on the inputs prove nothing"


CALLS = """
import sys; sys.modules["torch"] = None
import numpy as np
from run import Model
given = dict(np.load(sys.argv[1]))
model = Model(".")
for i in range(3):
    image, ids, mask = (given[name][i : i + 1] for name in ("image", "ids", "mask"))
    for scores in (model(image, ids, mask), model(image, mask=mask, ids=ids)):
        print(*scores.ravel())
for wrong in (
    {"ids": ids + 0.5}, {"ids": ids + 2**24}, {"ids": np.full_like(ids, -(2**63))},
    {"mask": mask * 2}, {"mask": mask[:, 1:]}, {"x": ids},
):
    try:
        model(**{"image": image, "ids": ids, "mask": mask, **wrong})
    except ValueError as refusal:
        print(refusal)
"""


def test_a_program_gives_several_inputs_by_place_or_by_name(
    with_caption: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    folder, expected = with_caption
    np.savez(tmp_path / "given.npz", **{name: each.numpy() for name, each in captioned().items()})
    done = subprocess.run(
        [sys.executable, "-c", CALLS, tmp_path / "given.npz"],
        cwd=folder, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    found = [[float(value) for value in line.split()] for line in lines[:6]]
    np.testing.assert_allclose(found, np.repeat(expected, 2, axis=0), rtol=0, atol=1e-5)
    assert lines[6:] == [
        *["the network takes ids as int64, with values up to 16777216"] * 3,
        "the network takes mask as bool, with values up to 16777216",
        "the network takes mask of shape (1, 7), not (1, 6)",
        "the network takes image, ids, mask, each once",
    ]


def test_each_output_has_its_own_tolerance(runner: Runner, several: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    shutil.copytree(several[0], tmp_path / "several")
    outputs = np.load(tmp_path / "several/reference_outputs.npy")
    outputs[2, -1] += 0.5  # of the last output
    np.save(tmp_path / "several/reference_outputs.npy", outputs)
    replace_file(
        tmp_path / "several", "reference_outputs.npy", (tmp_path / "several/reference_outputs.npy").read_bytes()
    )
    edit_manifest(tmp_path / "several", lambda manifest: manifest["outputs"][0].update(tolerance=1e6))
    done = runner.run(tmp_path / "several")
    assert done.returncode == 1
    first, second, last = done.stdout.splitlines()
    assert first.endswith("within 1e+06")
    assert second.endswith("within 1e-05")
    assert "output_again: largest difference from PyTorch 0.5, MORE THAN 1e-05" in last


@pytest.mark.parametrize("value", [1.0, np.nan], ids=str)
def test_other_outputs_are_a_failure(runner: Runner, bundle: Path, value: float) -> None:
    outputs = np.load(bundle / "reference_outputs.npy")
    outputs[1, 2] += value
    np.save(bundle / "reference_outputs.npy", outputs)
    replace_file(bundle, "reference_outputs.npy", (bundle / "reference_outputs.npy").read_bytes())
    done = runner.run(bundle)
    assert done.returncode == 1
    assert f"largest difference from PyTorch {value:.0f}, MORE THAN 1e-05" in done.stdout


def one_bit_off(name: str) -> Callable[[Path], object]:
    def change(bundle: Path) -> None:
        content = bytearray((bundle / name).read_bytes())
        content[len(content) // 2] ^= 1
        (bundle / name).write_bytes(content)

    return change


def of_another_processor(bundle: Path) -> None:
    library = bytearray((bundle / "model.so").read_bytes())
    library[18:20] = (243).to_bytes(2, "little")
    replace_file(bundle, "model.so", bytes(library))


def manifest_with(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    return lambda bundle: edit_manifest(bundle, change)


def cut_short(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(text[: len(text) // 2])


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "library": (one_bit_off("model.so"), r"model\.so is not the file that was deployed \(its checksum differs\)"),
    "inputs": (one_bit_off("reference_inputs.npy"), r"reference_inputs\.npy is not the file that was deployed"),
    "missing file": (lambda b: (b / "reference_outputs.npy").unlink(), r"cannot read \S+/reference_outputs\.npy"),
    "missing library": (lambda b: (b / "model.so").unlink(), r"cannot read \S+/model\.so"),
    "missing manifest": (lambda b: (b / "manifest.json").unlink(), r"cannot read \S+/manifest\.json"),
    "cut short": (cut_short, r"manifest\.json is damaged or cut short; copy the bundle again"),
    "list": (lambda b: (b / "manifest.json").write_text("[1]"), r"manifest\.json (is damaged|has version None)"),
    "version": (manifest_with(lambda m: m.update(schema_version=1)), r"manifest\.json (has version 1|is of another)"),
    "field": (manifest_with(lambda m: m["requires"].pop("machine")), r"manifest\.json is damaged \(.*machine"),
    "type": (manifest_with(lambda m: m.update(requires=7)), r"manifest\.json is damaged \(at "),
    "no outputs": (manifest_with(lambda m: m.update(outputs=[])), r"manifest\.json is damaged \(at outputs\)"),
    "no inputs": (manifest_with(lambda m: m.update(inputs=[])), r"manifest\.json is damaged \(at inputs\)"),
    "not a tensor": (manifest_with(lambda m: m.update(inputs=[1])), r"manifest\.json is damaged \(at "),
    "size": (manifest_with(lambda m: m["outputs"][0].update(shape=[1, -5])), r"manifest\.json is damaged \(at outputs"),
    "name twice": (
        manifest_with(lambda m: m["outputs"].append(m["outputs"][0])), r"manifest\.json is damaged \(at .*outputs\)"
    ),
    "two inputs": (
        manifest_with(lambda m: m["inputs"].append({**m["inputs"][0], "name": "mask"})),
        r"reference_inputs\.npy does not hold the values that manifest\.json says",
    ),
    "passed as": (
        manifest_with(lambda m: m["inputs"][0].update(passed_as="int4")), r"is damaged \(at inputs"
    ),
    "no name": (manifest_with(lambda m: m["outputs"][0].update(name=["logits"])), r"is damaged \(at (outputs|name)"),
    "no threads": (manifest_with(lambda m: m["requires"].pop("threads")), r"is damaged \(.*threads"),
    "a folder": (
        lambda bundle: ((bundle / "reference_inputs.npy").unlink(), (bundle / "reference_inputs.npy").mkdir()),
        r"cannot read .*reference_inputs\.npy.*; copy the bundle again",
    ),
    "tolerance of none": (manifest_with(lambda m: m["outputs"][0].update(tolerance=0)), r"is damaged \(at .*outputs"),
    "no shape": (manifest_with(lambda m: m["outputs"][0].pop("shape")), r"manifest\.json is damaged \(.*shape"),
    "no tolerance": (manifest_with(lambda m: m["outputs"][0].pop("tolerance")), r"is damaged \(.*tolerance"),
    "checksum": (manifest_with(lambda m: m["sha256"].pop("model.so")), r"manifest\.json .*model\.so"),
    "tvm": (
        manifest_with(lambda m: m["requires"].update(tvm="0.26.0")),
        r"compiled with TVM 0\.26\.0 and this (is|program with) TVM 0\.27\.0",
    ),
    "machine": (
        manifest_with(lambda m: m["requires"].update(machine="aarch64")),
        r"the bundle is for aarch64 and this program runs on x86_64; deploy for this machine",
    ),
    "library's machine": (of_another_processor, r"the bundle is for riscv and this program runs on x86_64"),
    "cpu": (
        manifest_with(lambda m: m["requires"]["cpu_features"].append("avx9")),
        r"compiled for a CPU with avx9 and this one has none of it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_bundle_that_does_not_fit_is_refused_in_one_sentence_before_it_is_loaded(
    runner: Runner, bundle: Path, case: str
) -> None:
    change, sentence = WRONG[case]
    replace_file(bundle, "model.so", telltale_library())
    change(bundle)
    done = runner.run(bundle)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"refused: .*{sentence}.*\n", done.stderr), done.stderr
    assert not (bundle / "loaded").exists()


def test_bundle_for_a_gpu_brings_its_machine_code_and_is_refused_without_a_driver(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tvm.cuda(0).exist:
        pytest.skip("there is a GPU here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = tmp_path / "bundle"
    make_bundle(bundle, device_target({"kind": "cuda", "arch": "sm_80"}, 1))
    replace_file(bundle, "model.so", telltale_library())
    done = runner.run(bundle)
    assert done.returncode == 2
    assert done.stderr.startswith("refused: the network needs an NVIDIA GPU and its driver is not installed (libcuda")
    assert not (bundle / "loaded").exists()
    one_bit_off("kernels.cubin")(bundle)
    assert "kernels.cubin is not the file that was deployed" in runner.run(bundle).stderr


def test_a_board_without_tvm_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise run.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(run.importlib.metadata, "version", missing)
    with pytest.raises(run.Refused, match=r"TVM 0\.27\.0 is needed and there is none; .* apache-tvm==0\.27\.0 "):
        run.check_tvm("0.27.0", "0.1")
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(run.Refused, match="TVM's package is not complete; install apache-tvm again"):
        run.load_runtime("cpu")


def test_library_that_is_loaded_is_noticed(runner: Runner, bundle: Path) -> None:
    replace_file(bundle, "model.so", telltale_library())
    assert runner.run(bundle).returncode == 1
    assert (bundle / "loaded").exists()


def test_network_can_be_used_from_a_program(original: tuple[Path, np.ndarray]) -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np; from run import Model; model = Model('.')\n"
        "images = np.load('reference_inputs.npy'); print(model(images[2:3]).argmax(), model(images[:1]).argmax())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=original[0], capture_output=True, text=True, timeout=60, check=True
    )
    expected = original[1].argmax(1)
    assert [int(word) for word in done.stdout.split()] == [expected[2], expected[0]]


def test_image_of_another_shape_is_refused(original: tuple[Path, np.ndarray]) -> None:
    shapes = [(), (12, 12), (3, 12, 12), (1, 1, 12, 12), (2, 3, 12, 12)]
    script = (
        "import numpy as np; from run import Model; model = Model('.')\n"
        f"for shape in {shapes}:\n"
        "    try: model(np.zeros(shape, np.float32))\n"
        "    except ValueError as refusal: print(refusal)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=original[0], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == [
        f"the network takes images of shape (1, 3, 12, 12), not {shape}" for shape in shapes
    ]


def test_packages_may_lie_in_a_folder_with_a_blank_in_its_name() -> None:
    here, there = build_command(Path("/site")), build_command(Path("/my site"))
    assert there == [word.replace("/site", "/my site") for word in here]


@needs_cross_compiler
def test_runner_in_cpp_compiles_for_a_board(tmp_path: Path) -> None:
    shutil.copy(RUNNERS / "run.cc", tmp_path)
    options = [word for word in build_command(PACKAGES, ARM_LINKER) if not word.startswith(("-l", "-L", "-Wl"))]
    subprocess.run([*options, "-fsyntax-only"], cwd=tmp_path, check=True)
