"""Device profiles: what a TOML file says about a board, checked key by key, and how the file is found.

A profile is a description only. Detecting the host's CPU, connecting and timing are other modules' work, and
nothing here imports TVM.
"""

import hashlib
import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from aap_hw.errors import UserError, closest
from aap_hw.files import read_text
from aap_hw.resources import resource_dirs
from aap_hw.validation import validated

# How a person writes on the command line where a device is.
CONNECT_FORMS = "local, rpc://HOST:PORT, rpc://HOST:PORT/KEY or tracker://HOST:PORT/KEY"

# Text on one printable line: it ends up in file names, tables and error sentences.
_Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*\S[^\x00-\x1f\x7f]*$")]
_Count = Annotated[int, Field(ge=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class TargetSpec(_Table):
    """What TVM compiles for. With ``kind = "host"`` the CPU is detected, so no other key is allowed.

    Of a GPU, ``mtriple`` and ``mcpu`` are those of the CPU that it serves, by default this machine's.
    """

    kind: Literal["host", "llvm", "cuda"] = Field(description='"host", "llvm" or "cuda"')
    tag: _Line | None = Field(None, description="the name of one of TVM's target tags")
    mtriple: _Line | None = Field(None, description='LLVM\'s name of the platform, like "aarch64-linux-gnu"')
    mcpu: _Line | None = Field(None, description='LLVM\'s name of the CPU, like "cortex-a72"')
    # TOML has arrays only, which strict mode would not accept as a tuple; their items are still checked.
    mattr: Annotated[tuple[_Line, ...], Field(strict=False)] = Field(
        (), description='a list of CPU features, like ["+neon"]'
    )
    arch: Annotated[str, Field(pattern=r"^sm_\d+[a-z]?$")] | None = Field(
        None, description='a CUDA architecture, like "sm_87"'
    )

    @model_validator(mode="after")
    def _only_keys_of_its_kind(self) -> Self:
        cpu = ("tag", "mtriple", "mcpu")
        allowed = {"host": (), "llvm": (*cpu, "mattr"), "cuda": (*cpu, "arch")}[self.kind]
        if self.tag is not None:
            # TVM lets keys given beside a tag silently replace the tag's own, its host CPU included.
            allowed = ("tag",)
        given = self.model_dump(exclude={"kind"}, exclude_defaults=True)
        if extra := sorted(given.keys() - set(allowed)):
            beside = "a tag" if self.tag is not None else f'kind "{self.kind}"'
            raise ValueError(f"{', '.join(extra)} cannot be given beside {beside}; remove it")
        return self

    def summary(self) -> str:
        """Describe the target in a few words for a table."""
        if self.kind == "host":
            return "this host's CPU"
        if self.tag is not None:
            return f"{self.kind} {self.tag}"
        if self.kind == "cuda":
            return f"cuda {self.arch or '(the GPU present)'}"
        return " ".join(part for part in ("llvm", self.mtriple, self.mcpu, *self.mattr) if part)


class ConnectSpec(_Table):
    """How the board is reached: it is this machine, it runs an RPC server, or a tracker knows it by a key.

    Attributes
    ----------
    key
        What the board registered as. A server that was started without a key needs none.
    timeout_s
        How long a board may not answer, beyond what its work takes, before it is given up.
    """

    kind: Literal["local", "rpc", "tracker"] = Field(description='"local", "rpc" or "tracker"')
    host: _Line | None = Field(None, description="a host name or an IP address")
    port: Annotated[int, Field(ge=1, le=65535)] | None = Field(None, description="a whole number from 1 to 65535")
    key: _Line | None = Field(None, description="the key under which the board is registered")
    # The operating system waits for 24 days at most.
    timeout_s: Annotated[float, Field(ge=1, le=86400)] = Field(30.0, description="a number of seconds from 1 to 86400")

    @model_validator(mode="after")
    def _exactly_the_keys_of_its_kind(self) -> Self:
        needed = {"local": set(), "rpc": {"host", "port"}, "tracker": {"host", "port", "key"}}[self.kind]
        allowed = set() if self.kind == "local" else {"host", "port", "key"}
        given = self.model_dump(exclude={"kind", "timeout_s"}, exclude_none=True).keys()
        if missing := sorted(needed - given):
            raise ValueError(f'kind "{self.kind}" also needs {", ".join(missing)}')
        if extra := sorted(given - allowed):
            raise ValueError(f'{", ".join(extra)} cannot be given beside kind "{self.kind}"; remove it')
        return self

    def at(self, text: str) -> Self:
        """The way that a person wrote on the command line (`CONNECT_FORMS`), with this one's timeout.

        Raises
        ------
        UserError : the text is none of these forms.
        """
        found = re.fullmatch(r"local|(rpc|tracker)://(\[[^\[\]/]+\]|[^:/\[\]]+):(\d{1,5})(?:/([^\s/]+))?", text)
        if found is None:
            raise UserError(f"'{text}' is no way to reach a device; write {CONNECT_FORMS}")
        kind, host, port, key = found.groups()
        if kind is None:
            return type(self)(kind="local", timeout_s=self.timeout_s)
        fields = {"host": host.strip("[]"), "port": int(port), **({"key": key} if key else {})}
        return validated(type(self), {"kind": kind, **fields, "timeout_s": self.timeout_s}, f"--connect {text}")

    def summary(self) -> str:
        """Describe the way to the board in a few words for a table."""
        if self.kind == "local":
            return "this machine"
        where = f"{self.kind} {self.host}:{self.port}"
        return where if self.key is None else f"{where}, key {self.key}"


class MeasureSpec(_Table):
    """How one kernel is timed."""

    warmup: Annotated[int, Field(ge=0)] = Field(3, description="a whole number of at least 0")
    repeats: _Count = Field(20, description="a whole number of at least 1")
    copies: _Count = Field(4, description="a whole number of at least 1")


class WidthsSpec(_Table):
    """Which widths are worth measuring: multiples of the granularity, at most so many for one group."""

    granularity: Literal["vector"] | _Count = Field("vector", description='"vector" or a whole number of at least 1')
    at_most: _Count = Field(8, description="a whole number of at least 1")


class BoardSpec(_Table):
    """What an estimate takes from a board that is not at hand (`aap_hw.estimate`).

    Attributes
    ----------
    l1_kib, l2_kib, l3_kib
        Data caches that one core can use; 0 where there is none.
    memory_gb_s
        Bytes that all cores together read and write in a second, by a benchmark of copies.
    fork_us
        How long it takes to start the other threads and to wait for them.
    """

    clock_ghz: Annotated[float, Field(gt=0)] = Field(description="a number of GHz above 0")
    l1_kib: _Count = Field(description="a whole number of KiB of at least 1")
    l2_kib: _Count = Field(description="a whole number of KiB of at least 1")
    l3_kib: Annotated[int, Field(ge=0)] = Field(0, description="a whole number of KiB of at least 0")
    memory_gb_s: Annotated[float, Field(gt=0)] = Field(description="a number of GB/s above 0")
    fork_us: Annotated[float, Field(ge=0)] = Field(10.0, description="a number of microseconds of at least 0")


class DeviceProfile(_Table):
    """One device: what to compile for, how to reach it, how to measure and which widths.

    Attributes
    ----------
    name
        What the user calls the device; also the name of its latency table.
    threads
        CPU threads that a net runs with: the target's cores and the run time's threads.
    measure.warmup, measure.repeats
        Calls before, and timed samples of, each kernel.
    measure.copies
        Sets of buffers that the timed calls take turns with, so that weights are as cold as inside a net.
    widths.granularity
        Step between widths in channels; ``"vector"`` is the number of float32 in one SIMD register.
    widths.at_most
        Largest number of widths measured for one channel group.
    board
        What estimates without the device need to know of it.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")] = Field(
        description="made of lower-case letters, digits, '.', '_' and '-'"
    )
    description: _Line = Field(description="one line of text")
    threads: _Count = Field(1, description="a whole number of at least 1")
    target: TargetSpec = Field(description="a table [target]")
    connect: ConnectSpec = Field(description="a table [connect]")
    measure: MeasureSpec = Field(default_factory=MeasureSpec, description="a table [measure]")
    widths: WidthsSpec = Field(default_factory=WidthsSpec, description="a table [widths]")
    board: BoardSpec | None = Field(None, description="a table [board]")

    @property
    def profile_hash(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of what a measured latency depends on.

        That is name, threads, target and measure. Rewording the description, moving the board to another
        address or asking for more widths leaves the points already measured valid.
        """
        fields = self.model_dump(mode="json", include={"name", "threads", "target", "measure"})
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def target_config(self) -> dict[str, object]:
        """Return what ``tvm.target.Target`` takes.

        For ``kind = "host"`` this names no CPU yet: whoever compiles adds the detected one.
        """
        target = self.target
        if target.tag is not None:
            config: dict[str, object] = {"tag": target.tag}
        else:
            config = {"kind": "llvm" if target.kind == "host" else target.kind}
            cpu = {key: value for key in ("mtriple", "mcpu") if (value := getattr(target, key)) is not None}
            if target.kind != "cuda":
                config.update(cpu)
            elif cpu:
                config["host"] = {"kind": "llvm", **cpu}
            if target.arch is not None:
                config["arch"] = target.arch
            if target.mattr:
                config["mattr"] = list(target.mattr)
        if target.kind != "cuda":
            config["num-cores"] = self.threads
        return config

    def reached_by(self, text: str | None) -> Self:
        """This profile with another way to its device, as `ConnectSpec.at` reads it; None leaves it as it is."""
        return self if text is None else self.model_copy(update={"connect": self.connect.at(text)})


def profile_names() -> list[str]:
    """List, sorted, the names under which profiles can be loaded."""
    return sorted({path.stem for folder in resource_dirs("device_profiles") for path in folder.glob("*.toml")})


def load_profile(name_or_path: str | Path) -> DeviceProfile:
    """Read and check a device profile.

    Parameters
    ----------
    name_or_path
        A name from `profile_names`, or the path of a TOML file: anything with a ``/`` or ending in ``.toml``.

    Raises
    ------
    UserError : there is no such profile, or the file is unreadable, is not TOML, has unknown or missing keys, or a
        value of the wrong type or out of range.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith(".toml"):
        return _read_profile(Path(name_or_path))
    known = profile_names()
    if text not in known:
        raise UserError(
            f"there is no device '{text}' (known: {', '.join(known)}; or give the path of a .toml file)"
            f"{closest(text, known)}"
        )
    path = next(p for folder in resource_dirs("device_profiles") if (p := folder / f"{text}.toml").is_file())
    profile = _read_profile(path)
    if profile.name != text:
        # A copied profile that kept its old name would overwrite the other device's latency table.
        raise UserError(f"device profile {path}: name must be '{text}' like the file, not '{profile.name}'")
    return profile


def _read_profile(path: Path) -> DeviceProfile:
    text = read_text(path, "device profile")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"device profile {path} is not valid TOML: {error}") from error
    return validated(DeviceProfile, data, f"device profile {path}")
