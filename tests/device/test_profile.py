"""Shipped profiles are sound; every mistake in a profile is one sentence that names the file and the key."""

import copy
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tvm.target import Target

from aap_hw.device import DeviceProfile, load_profile, profile_names
from aap_hw.device.profile import BoardSpec, ConnectSpec, MeasureSpec, TargetSpec, WidthsSpec
from aap_hw.errors import UserError
from aap_hw.validation import validated

SHIPPED = ["aarch64", "cuda", "jetson-orin", "rpi4", "rpi5", "x86"]

BOARD = """
name = "board"
description = "A board"
threads = 4
[target]
kind = "llvm"
mtriple = "aarch64-linux-gnu"
mattr = ["+neon"]
[connect]
kind = "rpc"
host = "192.0.2.7"
port = 9090
[measure]
warmup = 0
repeats = 5
copies = 2
[widths]
granularity = 4
at_most = 6
"""


def complaint(tmp_path: Path, text: str) -> str:
    path = tmp_path / "board.toml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_profile(path)
    sentence = str(caught.value)
    assert sentence.startswith(f"device profile {path}")
    assert "\n" not in sentence
    return sentence.removeprefix(f"device profile {path}").removeprefix(": ")


def parsed(changes: dict[str, Any]) -> DeviceProfile:
    data = tomllib.loads(BOARD)
    for table, values in changes.items():
        data[table] = {**data[table], **values} if isinstance(values, dict) else values
    return validated(DeviceProfile, data, "test")


def test_shipped_profiles_are_exactly_the_promised_ones() -> None:
    assert profile_names() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profile_loads_under_its_own_name(name: str) -> None:
    assert load_profile(name).name == name


def test_host_profile_is_one_thread_on_this_machine() -> None:
    x86 = load_profile("x86")
    assert (x86.target.kind, x86.threads, x86.connect.kind) == ("host", 1, "local")
    assert (x86.widths.granularity, x86.widths.at_most) == (8, 12)


@pytest.mark.parametrize(
    ("text", "way"),
    [
        ("local", ("local", None, None, None)),
        ("rpc://192.168.1.5:9090", ("rpc", "192.168.1.5", 9090, None)),
        ("rpc://pi.local:9090/rpi4", ("rpc", "pi.local", 9090, "rpi4")),
        ("tracker://[::1]:9190/kitchen", ("tracker", "::1", 9190, "kitchen")),
    ],
)
def test_way_to_a_device_is_read_as_a_person_writes_it(text: str, way: tuple[object, ...]) -> None:
    profile = load_profile("rpi4").reached_by(text)
    spec = profile.connect
    assert (spec.kind, spec.host, spec.port, spec.key) == way
    assert spec.timeout_s == load_profile("rpi4").connect.timeout_s
    # Where a board is makes no difference to what was measured on it.
    assert profile.profile_hash == load_profile("rpi4").profile_hash


@pytest.mark.parametrize(
    "text", ["", "rpc://host", "rpc:host:1", "ssh://host:22", "tracker://host:9190/", "rpc://h:1/a b"]
)
def test_way_that_is_none_is_refused_with_the_forms_there_are(text: str) -> None:
    with pytest.raises(UserError, match=r"no way to reach a device; write local, rpc://HOST:PORT, .*tracker://"):
        load_profile("rpi4").reached_by(text)


def test_tracker_without_a_key_and_impossible_port_are_named() -> None:
    with pytest.raises(UserError, match='kind "tracker" also needs key'):
        load_profile("rpi4").reached_by("tracker://127.0.0.1:9190")
    with pytest.raises(UserError, match="port must be a whole number from 1 to 65535"):
        load_profile("rpi4").reached_by("rpc://127.0.0.1:99999")


def test_every_value_of_the_file_arrives(tmp_path: Path) -> None:
    (tmp_path / "board.toml").write_text(BOARD)
    profile = load_profile(str(tmp_path / "board.toml"))
    seen = profile.model_dump(mode="json", exclude_none=True)
    written = tomllib.loads(BOARD)
    assert seen == {**written, "connect": {**written["connect"], "timeout_s": 30.0}}


def test_tvm_understands_every_shipped_target() -> None:
    built = {name: Target(load_profile(name).target_config()) for name in SHIPPED}
    assert {name: target.kind.name for name, target in built.items()} == {
        "aarch64": "llvm",
        "cuda": "cuda",
        "jetson-orin": "cuda",
        "rpi4": "llvm",
        "rpi5": "llvm",
        "x86": "llvm",
    }
    assert built["jetson-orin"].attrs["arch"] == "sm_87"
    assert built["jetson-orin"].host.attrs["mtriple"] == "aarch64-linux-gnu"
    assert [str(built[name].attrs["mcpu"]) for name in ("rpi4", "rpi5")] == ["cortex-a72", "cortex-a76"]
    assert [int(built[name].attrs["num-cores"]) for name in ("rpi4", "rpi5", "x86")] == [4, 4, 1]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("threads = 4|thraeds = 4", "unknown key 'thraeds'; did you mean 'threads'?"),
        ("repeats = 5|repeat = 5", "unknown key 'measure.repeat'; did you mean 'repeats'?"),
        ("copies = 2|zzz = 2", "unknown key 'measure.zzz' (known here: warmup, repeats, copies)"),
        ("threads = 4|threads = 0", "threads must be a whole number of at least 1, not 0"),
        ("threads = 4|threads = 4.0", "threads must be a whole number of at least 1, not 4.0"),
        ("threads = 4|threads = true", "threads must be a whole number of at least 1, not true"),
        ('threads = 4|threads = "4"', 'threads must be a whole number of at least 1, not "4"'),
        ("warmup = 0|warmup = -1", "measure.warmup must be a whole number of at least 0, not -1"),
        ("port = 9090|port = 70000", "connect.port must be a whole number from 1 to 65535, not 70000"),
        (
            "granularity = 4|granularity = 0",
            'widths.granularity must be "vector" or a whole number of at least 1, not 0',
        ),
        (
            'granularity = 4|granularity = "line"',
            'widths.granularity must be "vector" or a whole number of at least 1, not "line"',
        ),
        ('kind = "llvm"|kind = "llmv"', 'target.kind must be "host", "llvm" or "cuda", not "llmv"'),
        (
            'mattr = ["+neon"]|mattr = "+neon"',
            'target.mattr must be a list of CPU features, like ["+neon"], not "+neon"',
        ),
        (
            'mattr = ["+neon"]|mattr = [3]',
            'target.mattr must be a list of CPU features, like ["+neon"], not 3',
        ),
        (
            'kind = "llvm"|kind = "host"',
            'target: mattr, mtriple cannot be given beside kind "host"; remove it',
        ),
        (
            'kind = "llvm"|kind = "llvm"\ntag = "t"',
            "target: mattr, mtriple cannot be given beside a tag; remove it",
        ),
        ('name = "board"|', "the key 'name' is missing; it must be made of lower-case letters"),
        ('name = "board"|name = "My Board"', "name must be made of lower-case letters"),
        ('name = "board"|name = "../up"', "name must be made of lower-case letters"),
        ('"A board"|"two\\nlines"', "description must be one line of text"),
        ('host = "192.0.2.7"|', 'connect: kind "rpc" also needs host'),
        ('kind = "rpc"|kind = "tracker"', 'connect: kind "tracker" also needs key'),
        ('kind = "rpc"|kind = "local"', 'connect: host, port cannot be given beside kind "local"; remove it'),
        *(
            (
                f"port = 9090|port = 9090\ntimeout_s = {seconds}",
                "connect.timeout_s must be a number of seconds from 1 to 86400",
            )
            for seconds in ("inf", "nan", "0.5", "1e7")
        ),
        *(
            (f"at_most = 6|at_most = 6\n[board]\n{key} = inf", f"board.{key} must be a number of")
            for key in ("clock_ghz", "memory_gb_s", "fork_us")
        ),
        ("threads = 4|threads = 4 4", "(at line 4, column 13)"),
        ("[measure]|[measure", "(at line 13, column 9)"),
        ("threads = 4|threads = 4\nthreads = 5", "(at line 5, column 12)"),
    ],
)
def test_mistake_in_a_profile_is_one_sentence(tmp_path: Path, change: str, sentence: str) -> None:
    old, new = change.split("|")
    assert BOARD.count(old) == 1
    assert sentence in complaint(tmp_path, BOARD.replace(old, new))


def test_value_where_a_table_belongs_is_named(tmp_path: Path) -> None:
    text = 'name = "board"\ndescription = "d"\ntarget = "cuda"\n[connect]\nkind = "local"\n'
    assert complaint(tmp_path, text) == 'target must be a table [target], not "cuda"'


def test_several_mistakes_are_reported_together(tmp_path: Path) -> None:
    text = BOARD.replace("threads = 4", "threads = 0").replace("repeats", "repetas")
    assert complaint(tmp_path, text) == (
        "threads must be a whole number of at least 1, not 0; unknown key 'measure.repetas'; did you mean 'repeats'?"
    )


def test_file_that_is_missing_or_not_text_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"device profile .*absent\.toml: No such file"):
        load_profile(tmp_path / "absent.toml")
    (tmp_path / "board.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(UserError, match=r"not UTF-8"):
        load_profile(tmp_path / "board.toml")


def test_unknown_device_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        load_profile("rpi44")
    assert "cuda, jetson-orin, rpi4, rpi5, x86" in str(caught.value)
    assert str(caught.value).endswith("did you mean 'rpi4'?")


def test_page_on_profiles_names_every_key_and_what_is_there_without_it() -> None:
    page = (Path(__file__).parents[2] / "docs" / "device-profile.md").read_text("utf-8")
    example = tomllib.loads(page.partition("```toml\n")[2].partition("```")[0])
    profile = validated(DeviceProfile, example, "the page")
    tables = (DeviceProfile, TargetSpec, ConnectSpec, MeasureSpec, WidthsSpec, BoardSpec)
    assert [key for table in tables for key in table.model_fields if not re.search(rf"\b{key}\b", page)] == []
    del example["measure"], example["widths"], example["connect"]["timeout_s"]
    assert validated(DeviceProfile, example, "the page without what may be left out") == profile


def test_copied_profile_that_kept_its_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aap_hw.device.profile.resource_dirs", lambda kind: [tmp_path])
    (tmp_path / "mine.toml").write_text(BOARD)
    with pytest.raises(UserError, match=r"name must be 'mine' like the file, not 'board'"):
        load_profile("mine")


def test_hash_changes_with_what_a_latency_depends_on_and_with_nothing_else() -> None:
    original = parsed({}).profile_hash
    assert len(original) == 12
    assert int(original, 16) >= 0
    assert parsed({}).profile_hash == original
    for same in ({"description": "Another"}, {"connect": {"port": 9091}}, {"widths": {"at_most": 9}}):
        assert parsed(same).profile_hash == original
    changes: list[dict[str, Any]] = [
        {"name": "board2"},
        {"threads": 3},
        {"target": {"mcpu": "cortex-a53"}},
        {"target": {"mattr": []}},
        {"measure": {"copies": 3}},
    ]
    assert len({original, *(parsed(change).profile_hash for change in changes)}) == 1 + len(changes)


# A path into the parsed file, and what to put there.
leaves = st.sampled_from(
    [(t, k) for t, v in tomllib.loads(BOARD).items() for k in (v if isinstance(v, dict) else [None])]
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=4), inner))


@given(leaves, values)
def test_any_value_anywhere_is_accepted_or_refused_in_one_sentence(leaf: tuple[str, str | None], value: Any) -> None:
    data = copy.deepcopy(tomllib.loads(BOARD))
    table, key = leaf
    if key is None:
        data[table] = value
    else:
        data[table][key] = value
    try:
        profile = validated(DeviceProfile, data, "test")
    except UserError as error:
        sentence = str(error)
    else:
        # What is accepted is kept as it is, not coerced.
        kept = profile.model_dump(mode="json")[table]
        assert json.dumps(kept if key is None else kept[key]) == json.dumps(value)
        return
    assert (key or table) in sentence
    assert "\n" not in sentence
