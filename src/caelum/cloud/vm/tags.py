"""System tags of VMs: what a user may ask of one beyond the parameters of its creation."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re

from caelum.kernel.errors import INVALID_ARGUMENT, CloudError
from caelum.kernel.tag import Tokens, system_tag

_HOSTNAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
BOOT_DEVICES = ("HardDisk", "CdRom", "Network")
MAX_USERDATA = 64 * 1024
"""Longest user data, in bytes after decoding: what metadata services of other clouds accept, and some more."""


def check_hostname(tokens: Tokens) -> None:
    """RFC 1123 names, with dots allowed between labels."""
    if len(tokens["hostname"]) > 253 or not _HOSTNAME.fullmatch(tokens["hostname"]):
        raise _refusal(f"hostname[{tokens['hostname']}] is not a valid host name (letters, digits, hyphens, dots)")


def _check_static_ip(tokens: Tokens) -> None:
    # The original writes IPv6 addresses with -- for ::, since :: separates a tag's parts.
    text = tokens["staticIp"].replace("--", "::")
    try:
        ipaddress.ip_address(text)
    except ValueError as error:
        raise _refusal(f"staticIp[{text}] is not an IP address") from error


def check_mac(tokens: Tokens) -> None:
    """Lower-case, colon-separated, and not a multicast address."""
    mac = tokens["customMac"].lower()
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1:
        raise _refusal(f"customMac[{mac}] is not a unicast MAC address such as fa:16:3e:00:00:01")


def _check_userdata(tokens: Tokens) -> None:
    try:
        size = len(base64.b64decode(tokens["userdata"], validate=True))
    except (binascii.Error, ValueError) as error:
        raise _refusal("userdata is not base64") from error
    if size > MAX_USERDATA:
        raise _refusal(f"userdata has {size} bytes; at most {MAX_USERDATA} are allowed")


def _check_boot_order(tokens: Tokens) -> None:
    devices = tokens["bootOrder"].split(",")
    if unknown := [one for one in devices if one not in BOOT_DEVICES]:
        raise _refusal(f"bootOrder names {unknown}; known are {list(BOOT_DEVICES)}")


def _refusal(text: str) -> CloudError:
    return CloudError(INVALID_ARGUMENT, text)


HOSTNAME = system_tag("hostname::{hostname}", "VmInstanceVO", validator=check_hostname)
STATIC_IP = system_tag("staticIp::{l3NetworkUuid}::{staticIp}", "VmInstanceVO", validator=_check_static_ip)
CUSTOM_MAC = system_tag("customMac::{l3NetworkUuid}::{customMac}", "VmInstanceVO", validator=check_mac)
USERDATA = system_tag("userdata::{userdata}", "VmInstanceVO", validator=_check_userdata)
SSHKEY = system_tag("sshkey::{sshkey}", "VmInstanceVO")
CONSOLE_PASSWORD = system_tag("consolePassword::{consolePassword}", "VmInstanceVO", sensitive=True)
BOOT_ORDER = system_tag("bootOrder::{bootOrder}", "VmInstanceVO", validator=_check_boot_order)
BOOT_MODE = system_tag("bootMode::{bootMode}", "VmInstanceVO")
CLEAN_TRAFFIC_TAG = system_tag("cleanTraffic::{cleanTraffic}", "VmInstanceVO")
STORAGE_FOR_DATA = system_tag("primaryStorageUuidForDataVolume::{primaryStorageUuidForDataVolume}", "VmInstanceVO")
CDROM_LIST = system_tag("cdroms::{cdrom0}::{cdrom1}::{cdrom2}", "VmInstanceVO")
WITHOUT_CDROM = system_tag("createWithoutCdRom::{createWithoutCdRom}", "VmInstanceVO")
GUEST_AGENT = system_tag("qemuga", "VmInstanceVO")
