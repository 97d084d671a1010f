"""Targets: every shipped one is valid, and every fault of a broken one is named with its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.base.errors import ConfigError
from edgekit.profiles import targets
from edgekit.targets.target import Budget, Quantize

SMALLEST = 'name = "mine"\n[[export]]\nformat = "gguf"\n'


def write(folder: Path, text: str, name: str = "mine") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def faults_of(path: Path) -> dict[int, str]:
    """Line -> the rest, one fault a line."""
    found = {}
    for fault in targets.validate(path):
        match = re.fullmatch(r"(\w[\w-]*\.toml):(\d+): (.*)", fault, flags=re.DOTALL)
        assert match, fault
        found[int(match[2])] = match[3]
    return found


@pytest.mark.parametrize("name", targets.names())
def test_every_shipped_target_is_valid(name: str) -> None:
    target = targets.load(name)
    assert targets.validate(name) == []
    assert target.name == name
    assert target.summary
    assert set(target.bits_per_weight) == {export.format for export in target.export}
    assert target.budget.size_mib is None and target.budget.peak_rss_mib is None  # they follow from the model
    for weights in (134_515_008, 500_000_000):
        limits = target.budget.for_model(weights)
        assert limits.size_mib and limits.peak_rss_mib
        assert max(target.bits_per_weight.values()) * weights / 8 / 2**20 < limits.size_mib
        assert limits.size_mib < limits.peak_rss_mib <= target.device.memory_mib


def test_a_limit_in_mib_stays_as_it_is_given() -> None:
    budget = targets.load("cpu-int4", ["budget.size_mib=100"]).budget.for_model(10**9)
    assert (budget.size_mib, budget.peak_rss_mib) == (100, 443)
    assert targets.load("cpu-int4", ["budget.peak_rss_mib=900"]).budget.for_model(10**9).peak_rss_mib == 900
    assert Budget().for_model(10**9) == Budget()


def test_the_first_targets_are_there() -> None:
    assert {"cpu-int4", "cpu-int8", "mobile-int4", "rpi5-int4", "laptop-q5"} <= set(targets.names())
    formats = {name: [export.format for export in targets.load(name).export] for name in targets.names()}
    assert formats["cpu-int4"] == ["gguf", "onnx"]
    assert formats["rpi5-int4"] == ["gguf"]
    assert targets.load("mobile-int4").device.arch == ["aarch64"]


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'laptop-q5'") as refusal:
        targets.load("laptop-q4")
    assert "rpi5-int4" in refusal.value.hint


def test_every_fault_is_named_at_once_with_its_line(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """schema = 2
name = "mine"
colour = 1

[device]
arch = ["x86_64", "riscv"]
thread = 4
memory_mib = "big"

[tune]
modules = 3
"rank" = 0

[[export]]
format = "gguf"
type = "Q4_K"

[[export]]
format = "onnx"
precison = "int4"

[budget]
size_mib = -1
""",
    )
    faults = faults_of(path)
    assert sorted(faults) == [1, 3, 6, 7, 8, 11, 12, 16, 20, 23]
    assert "unknown key" in faults[3]
    assert "device.arch" in faults[6] and "riscv" in faults[6]
    assert re.search("device.thread: unknown key; did you mean '?threads'?", faults[7])
    assert "'big'" in faults[8]
    assert faults[11].startswith("tune.modules: ")
    assert not any("literal[" in fault or "list[" in fault for fault in targets.validate(path))
    assert "tune.rank" in faults[12]
    assert "Q4_K_M" in faults[16]
    assert re.search("did you mean '?precision'?", faults[20])
    assert "greater than 0" in faults[23]


def test_load_raises_with_every_fault(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST + "[tune]\nrank = 0\nepoch = 1\n")
    with pytest.raises(ConfigError) as refusal:
        targets.load(path)
    assert refusal.value.faults == targets.validate(path)
    assert len(refusal.value.faults) == 2
    assert refusal.value.hint


def test_a_syntax_error_is_named_with_its_line(tmp_path: Path) -> None:
    faults = targets.validate(write(tmp_path, SMALLEST + "[tune\nrank = 4\n"))
    assert len(faults) == 1
    assert "mine.toml" in faults[0] and "line 4" in faults[0] or ":4:" in faults[0]


def test_a_missing_or_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        targets.load(tmp_path / "nowhere.toml")
    (tmp_path / "mine.toml").write_bytes(b'name = "\xff"')
    assert targets.validate(tmp_path / "mine.toml")


def test_extends_merges_tables_and_replaces_lists(tmp_path: Path) -> None:
    path = write(
        tmp_path, 'extends = "cpu-int4"\nname = "mine"\n[device]\nthreads = 7\n[profile]\nthreads = [3]\n'
    )
    mine, base = targets.load(path), targets.load("cpu-int4")
    assert mine.device.threads == 7
    assert mine.device.memory_mib == base.device.memory_mib
    assert mine.profile.threads == [3]
    assert mine.export == base.export
    assert base.bits_per_weight and not mine.bits_per_weight  # measured on the base's files, not on these
    replaced = write(tmp_path, 'extends = "cpu-int4"\n' + SMALLEST)
    assert [export.format for export in targets.load(replaced).export] == ["gguf"]


@pytest.mark.parametrize(
    ("extends", "said"),
    [('"laptop-q4"', "laptop-q5"), ('"cpu-int8"', "one level"), ("3", "extends")],
)
def test_what_cannot_be_extended_is_named_beside_the_other_faults(
    tmp_path: Path, extends: str, said: str
) -> None:
    path = write(
        tmp_path, f'name = "mine"\nextends = {extends}\n[[export]]\nformat = "gguf"\n[tune]\nepoch = 1\n'
    )
    faults = faults_of(path)
    assert said in faults[2]
    assert "did you mean 'epochs'" in faults[6]


def test_faults_of_the_extended_file_name_that_file(tmp_path: Path) -> None:
    base = write(
        tmp_path, 'schema = 1\nname = "base"\n[[export]]\nformat = "gguf"\n[tune]\nrank = 0\n', "base"
    )
    path = write(tmp_path, f'name = "mine"\nextends = "{base}"\n')
    (fault,) = targets.validate(path)
    assert fault.startswith("base.toml:6: tune.rank")


def test_values_are_shown_with_their_origin(tmp_path: Path) -> None:
    path = write(tmp_path, 'extends = "cpu-int4"\n' + SMALLEST + "[tune]\nepochs = 5\n")
    rows = {key: (value, origin) for key, value, origin in targets.resolved(path)}
    assert rows["tune.epochs"] == (5.0, "mine.toml")
    assert rows["device.memory_mib"][1] == "cpu-int4.toml"
    assert rows["tune.seed"][1] == "default"
    assert rows["export.0.type"] == ("Q4_K_M", "default")  # the list is the child's: the base's type is gone


def test_changes_from_the_command_line_come_last() -> None:
    changed = targets.load("cpu-int4", ["tune.epochs=1.5", "export.0.type=Q5_K_M", "profile.threads=[1]"])
    assert changed.tune.epochs == 1.5
    assert changed.export[0].type == "Q5_K_M"  # type: ignore[union-attr]
    assert changed.profile.threads == [1]
    assert targets.load("cpu-int4").profile.threads != [1]


@pytest.mark.parametrize(
    "change", ["tune.epochs", "tune.epoch=1", "tune.rank=0", "export.9.type=Q4_0", "a.b.c=1"]
)
def test_a_wrong_change_is_refused(change: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        targets.load("cpu-int4", [change])
    assert len(refusal.value.faults) == 1


def test_the_schema_knows_every_table() -> None:
    schema = targets.schema()
    assert {"device", "tune", "prune", "quantize", "export", "profile", "budget"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False


QUANTIZE = """[quantize]
method = "nearest"
size_mib = 90
bits_per_weight = 4.6
short_rows_bits_per_weight = 5.3
types = ["IQ4_NL", "Q6_K"]
calibration_texts = 8
"""
WRONG_QUANTIZE = """[quantize]
method = "gptq"
size_mib = 0
bits_per_weight = -1
short_rows_bits_per_weight = "few"
types = ["Q4_K_M"]
calibration_texts = -8
"""


def test_how_weights_are_rounded_is_checked_key_by_key(tmp_path: Path) -> None:
    assert targets.validate(write(tmp_path, SMALLEST + QUANTIZE)) == []
    faults = faults_of(write(tmp_path, SMALLEST + WRONG_QUANTIZE))
    keys = [line.partition(" ")[0] for line in QUANTIZE.splitlines()[1:]]
    assert sorted(faults) == [*range(5, 5 + len(keys))]
    assert all(f"quantize.{key}" in faults[line] for line, key in enumerate(keys, start=5))
    assert "nearest" in faults[5] and "Q4_K" in faults[9]
    (empty,) = faults_of(write(tmp_path, SMALLEST + "[quantize]\ntypes = []\n")).values()
    assert "quantize.types" in empty
    assert {*keys} <= targets.schema()["$defs"]["Quantize"]["properties"].keys()


def test_a_divergence_and_a_size_exclude_each_other(tmp_path: Path) -> None:
    for size in ("size_mib", "bits_per_weight", "short_rows_bits_per_weight"):
        both = f"[quantize]\nmax_kld_nats = 0.05\n{size} = 5\n"
        (fault,) = faults_of(write(tmp_path, SMALLEST + both)).values()
        assert f"quantize: max_kld_nats and {size} exclude each other" in fault
    for value, words in (("0", "greater than 0"), ("-1", "greater than 0"), ("nan", "greater than 0")):
        (fault,) = faults_of(write(tmp_path, SMALLEST + f"[quantize]\nmax_kld_nats = {value}\n")).values()
        assert words in fault
    both = "[quantize]\nmax_kld_nats = 0.05\nmin_decode_tokens_per_s = 5\n"
    (fault,) = faults_of(write(tmp_path, SMALLEST + both)).values()
    assert "max_kld_nats and min_decode_tokens_per_s exclude each other" in fault
    for asked in ("max_kld_nats = 0.05", "calibration_trial = true"):
        for off in ('method = "nearest"', "calibration_rows = 0"):
            (fault,) = faults_of(write(tmp_path, SMALLEST + f"[quantize]\n{asked}\n{off}\n")).values()
            assert f"{asked.split()[0]} needs method" in fault


def test_a_divergence_replaces_the_size_of_the_target_that_is_extended(tmp_path: Path) -> None:
    text = 'schema = 1\nname = "mine"\nextends = "cpu-int4"\n[quantize]\nmax_kld_nats = 0.05\n'
    for made in (
        targets.load(write(tmp_path, text)),
        targets.load("cpu-int4", ["quantize.max_kld_nats=0.05"]),
    ):
        assert made.quantize.max_kld_nats == 0.05 and made.quantize.bits_per_weight is None
        assert made.quantize.calibration_rows == 128
    back = targets.load(write(tmp_path, text), ["quantize.bits_per_weight=5"]).quantize
    assert (back.max_kld_nats, back.bits_per_weight) == (None, 5)
    with pytest.raises(ConfigError):
        targets.load("cpu-int4", ["quantize.max_kld_nats=0.05", "quantize.size_mib=90"])


def test_a_size_in_mib_counts_before_bits() -> None:
    both = Quantize(size_mib=1, bits_per_weight=4, short_rows_bits_per_weight=5)
    bits = both.model_copy(update={"size_mib": None})
    assert both.max_bytes(1000, short_rows=True) == 2**20
    assert (bits.max_bytes(1000, short_rows=False), bits.max_bytes(1000, short_rows=True)) == (500, 625)
    assert Quantize(bits_per_weight=4).max_bytes(1000, short_rows=True) == 500
    assert Quantize().max_bytes(1000, short_rows=False) is None


@settings(max_examples=80, deadline=None)
@given(
    table=st.sampled_from(["device", "tune", "prune", "quantize", "profile", "budget"]),
    key=st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=20),
    blank=st.integers(0, 5),
)
def test_an_unknown_key_is_always_found_on_its_line(
    tmp_path_factory: pytest.TempPathFactory, table: str, key: str, blank: int
) -> None:
    known = targets.schema()["$defs"][table.capitalize()]["properties"]
    if key not in known:
        text = SMALLEST + "# note\n" * blank + f"[{table}]\n{key} = 1 # = [x]\n"
        faults = faults_of(write(tmp_path_factory.mktemp("t"), text))
        assert list(faults) == [5 + blank]
        assert f"{table}.{key}" in faults[5 + blank]


def test_a_limit_on_robustness_needs_its_measurement() -> None:
    with pytest.raises(ConfigError) as refusal:
        targets.load("cpu-int4", ["evaluate.robust=false", "budget.robust_drop_points=6"])
    assert "evaluate.robust = true" in " ".join(refusal.value.faults)
    assert targets.load("cpu-int4", ["budget.robust_drop_rate=0.3"]).budget.robust_drop_rate == 0.3
    with pytest.raises(ConfigError) as refusal:
        targets.load("cpu-int4", ['evaluate.robust_families=["typo"]'])
    assert "robust_families" in " ".join(refusal.value.faults)
