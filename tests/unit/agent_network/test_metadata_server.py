"""What a guest may ask for, in the dialects that guests speak."""

from __future__ import annotations

import json

import pytest

from caelum.agent.network.metadata_server import VERSIONS, answer, response

KEY = "ssh-ed25519 AAAA me@here"
FULL = {"ip": "10.0.0.11", "vmUuid": "vm-1", "hostname": "web", "sshKeys": [KEY], "userData": "#cloud-config\n"}
BARE = {"ip": "10.0.0.12", "vmUuid": "vm-2", "hostname": "db"}


@pytest.mark.parametrize("version", VERSIONS)
def test_ec2(version: str) -> None:
    assert answer(FULL, f"/{version}/meta-data/instance-id") == "vm-1"
    assert answer(FULL, f"/{version}/meta-data/local-ipv4") == "10.0.0.11"
    assert answer(FULL, f"/{version}/meta-data/public-keys/") == "0=key-0"
    assert answer(FULL, f"/{version}/meta-data/public-keys/0/") == "openssh-key"
    assert answer(FULL, f"/{version}/meta-data/public-keys/0/openssh-key") == KEY
    assert answer(FULL, f"/{version}/user-data") == "#cloud-config\n"
    assert answer(FULL, f"/{version}/") == "meta-data/\nuser-data"


def test_listings_lead_to_everything() -> None:
    """A client that crawls from the root, as cloud-init does, meets only paths that answer."""
    seen, pending = set(), ["latest/meta-data/"]
    while pending:
        path = pending.pop()
        text = answer(FULL, path)
        assert text is not None, path
        seen.add(path)
        if path.endswith("/"):
            names = [line.partition("=")[0] + ("/" if "=" in line else "") for line in text.split("\n")]
            pending += [path + name for name in names]
    assert "latest/meta-data/public-keys/0/openssh-key" in seen
    assert "latest/meta-data/hostname" in seen
    assert answer(FULL, "/") == "1.0\n2009-04-04\nlatest"


def test_without_keys_and_user_data() -> None:
    assert answer(BARE, "/latest/user-data") is None
    assert answer(BARE, "/latest/meta-data/public-keys/") is None
    assert "public-keys" not in (answer(BARE, "/latest/meta-data/") or "")
    assert answer(BARE, "/user-data") == "", "NoCloud insists on the file"


def test_no_cloud_and_openstack() -> None:
    facts = json.loads(answer(FULL, "/meta-data") or "")
    assert facts == {"instance-id": "vm-1", "local-hostname": "web", "public-keys": [KEY]}
    assert answer(FULL, "/user-data") == "#cloud-config\n"
    stack = json.loads(answer(FULL, "/openstack/latest/meta_data.json") or "")
    assert (stack["uuid"], stack["public_keys"]) == ("vm-1", {"key-0": KEY})
    assert answer(FULL, "/openstack/latest/user_data") == "#cloud-config\n"


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/latest/meta-data/x", "/nothing", "/latest/user-data/x"])
def test_nothing_else(path: str) -> None:
    assert answer(FULL, path) is None


def test_response() -> None:
    text = response(200, "ä").decode()
    assert "Content-Length: 2\r\n" in text
    assert text.endswith("\r\n\r\nä")
    assert response(404, "x", head_only=True).endswith(b"\r\n\r\n")
