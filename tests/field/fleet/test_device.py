"""Devices as they are typed and listed: what is refused, and where a token goes."""

from __future__ import annotations

import json
import traceback
from pathlib import Path

import pytest

from edgekit.base.errors import ConfigError
from edgekit.field.fleet.device import Device, parse_device, read_fleet


def test_devices_as_they_are_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_TOKEN", "secret")
    device = parse_device("line-3=https://10.0.0.3:8080/metrics")
    assert (device.name, device.url, device.token) == ("line-3", "https://10.0.0.3:8080/status", "secret")
    assert "secret" not in repr(device)
    assert parse_device("a=http://10.0.0.3:8080").url == "http://10.0.0.3:8080/status"
    assert parse_device("line-4=ssh:user@host") == Device("line-4", host="user@host")
    assert parse_device("line-4=ssh:host:/var/lib/edgekit").state == Path("/var/lib/edgekit")


@pytest.mark.parametrize(
    ("where", "sent"),
    [
        ("https://line-3/status", True), ("http://localhost:8080", True), ("http://127.0.0.1:8080", True),
        ("http://[::1]:8080", True), ("http://10.0.0.3:8080", False), ("http://127.0.0.1.example.org", False),
        ("http://line-3:8080/https://", False),
    ],
)  # fmt: skip
def test_the_environments_token_goes_nowhere_that_others_can_read_it(
    monkeypatch: pytest.MonkeyPatch, where: str, sent: bool
) -> None:
    monkeypatch.setenv("EDGEKIT_TOKEN", "secret")
    assert parse_device(f"x={where}").token == ("secret" if sent else "")


@pytest.mark.parametrize("token", ["zq7\rkx9", "zq7\nkx9", "zq7 kx9", "zq7\u00e9kx9", "zq7\x00kx9"])
def test_a_token_that_cannot_be_sent_is_refused_and_not_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str
) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(f'[[device]]\nname = "a"\nurl = "http://h"\ntoken = {json.dumps(token)}\n')
    with pytest.raises(ConfigError, match="token") as told:
        Device("a", "http://h/status", token=token)
    with pytest.raises(ConfigError) as listed:
        read_fleet(path)
    for error in (told.value, listed.value):
        whole = "".join(traceback.format_exception(error)) + repr(vars(error))
        assert "zq7" not in whole and "kx9" not in whole


@pytest.mark.parametrize(
    "text",
    [
        "line-3", "line-3=", "=http://a/status", "line 3=http://a/status", "x=ftp://a", "x=http://", "x=http://a:99999/",
        "x=ssh:", "x=ssh:-oProxyCommand=id", "x=ssh:-oProxyCommand=id@host", "x=ssh:ho st", "x=http://me:secret@a/status",
        "x=http://a/\x1b[31m", "-x=ssh:host", "x=ssh:h;id",
    ],
)  # fmt: skip
def test_what_is_no_device_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError) as told:
        parse_device(text)
    assert "line-3=http://10.0.0.3:8080/status" in told.value.hint


def test_a_list_of_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINE_TOKEN", "t")
    path = tmp_path / "fleet.toml"
    path.write_text(
        '[[device]]\nname = "a"\nurl = "http://h:1"\ntoken_env = "LINE_TOKEN"\n'
        '[[device]]\nname = "b"\nhost = "me@h"\nstate = "/var/e"\n'
    )
    first, second = read_fleet(path)
    assert (first.url, first.token) == ("http://h:1/status", "t")
    assert (second.host, second.state) == ("me@h", Path("/var/e"))


def test_every_fault_of_a_list_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(
        '[[device]]\nname = "a"\nurll = "http://h:1"\n[[device]]\nname = "b"\nhost = "-oX"\nurl = "x"\n'
        '[[device]]\nurl = "http://h"\n'
    )
    with pytest.raises(ConfigError) as told:
        read_fleet(path)
    faults = "\n".join(told.value.faults)
    assert "device 1 (a): urll: unknown key; did you mean 'url'?" in faults
    assert "device 2 (b)" in faults and "not both" in faults and "'-oX' is not a host name" in faults
    assert "device 3: name" in faults


@pytest.mark.parametrize(
    "text", ["[[device]", "device = 3", "", '[[device]]\nname="a"\nurl="http://h"\n' * 2]
)
def test_a_bad_list_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        read_fleet(path)
    with pytest.raises(ConfigError):
        read_fleet(tmp_path / "none.toml")
