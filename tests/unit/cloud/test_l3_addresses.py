"""Arithmetic of addresses and ranges, checked against sets of addresses."""

from __future__ import annotations

import itertools
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caelum.cloud.l3.addresses import Span, at, offset, overlap, range_of, ranges_of_cidr, size, usable
from caelum.cloud.l3.model import UsedIpModel
from caelum.kernel.errors import CloudError

BASE = {4: int(IPv4Address("10.0.0.0")), 6: int(IPv6Address("fd00::"))}


def span(first: int, length: int, version: int = 4) -> Span:
    make = IPv4Address if version == 4 else IPv6Address
    start = make(BASE[version] + first)
    return SimpleNamespace(start_ip=str(start), end_ip=str(start + length - 1))


spans = st.builds(span, st.integers(0, 60), st.integers(1, 30))


def members(one: Span) -> set[int]:
    return set(range(int(ip_address(one.start_ip)), int(ip_address(one.end_ip)) + 1))


@given(spans, st.lists(spans, max_size=5))
def test_what_is_usable_is_the_range_without_what_is_reserved(one: Span, reserved: list[Span]) -> None:
    left = members(one) - set().union(*(members(other) for other in reserved))
    segments = usable(one, reserved)
    assert {int(at(one, n)) for first, last in segments for n in range(first, last + 1)} == left
    assert sum(segment.size for segment in segments) == len(left)
    assert all(before.last < after.first for before, after in itertools.pairwise(segments))


@given(spans, spans)
def test_ranges_overlap_when_they_share_an_address(one: Span, other: Span) -> None:
    assert overlap(one, other) == bool(members(one) & members(other))


@given(st.integers(0, 60), st.integers(1, 30), st.integers(0, 100), st.sampled_from([4, 6]))
def test_offsets_are_distances_from_the_start_for_both_versions(first: int, length: int, n: int, version: int) -> None:
    one = span(first, length, version)
    address = at(one, n)
    assert offset(one, address) == (n if n < length else None)
    assert size(one) == length


def test_versions_never_mix() -> None:
    assert not overlap(span(0, 10), span(0, 10, 6))
    assert offset(span(0, 10), IPv6Address("fd00::1")) is None


@given(st.integers(20, 29), st.integers(0, 4094))
def test_a_cidr_gives_every_host_address_but_the_gateway(prefix: int, place: int) -> None:
    network = f"10.0.0.0/{prefix}"
    hosts = 2 ** (32 - prefix) - 2
    gateway = IPv4Address("10.0.0.1") + place % hosts
    found = ranges_of_cidr(network, str(gateway), pool=False)
    given_out = [int(one.start) + n for one in found for n in range(int(one.end) - int(one.start) + 1)]
    assert len(given_out) == len(set(given_out)) == hosts - 1
    assert int(gateway) not in given_out
    assert {one.gateway for one in found} == {gateway}


@pytest.mark.parametrize(
    ("cidr", "gateway", "named"),
    [("10.0.0.0/30", None, "too small"), ("fd00::/64", None, "not an IPv4"), ("x", None, "not a CIDR"),
     ("10.0.0.0/24", "10.0.0.255", "is none of"), ("10.0.0.0/24", "10.0.1.1", "is none of")],
)  # fmt: skip
def test_a_cidr_that_cannot_be_a_range_is_refused(cidr: str, gateway: str | None, named: str) -> None:
    with pytest.raises(CloudError, match=named):
        ranges_of_cidr(cidr, gateway, pool=False)


def test_host_bits_of_a_cidr_are_dropped() -> None:
    assert str(ranges_of_cidr("10.0.0.77/24", None, pool=False)[0].network) == "10.0.0.0/24"


def test_a_pool_may_be_any_part_of_its_network() -> None:
    pool = range_of("10.0.0.0", "10.0.0.255", "255.255.255.0", None, pool=True)
    assert (str(pool.gateway), str(pool.network)) == ("10.0.0.0", "10.0.0.0/24")
    whole = ranges_of_cidr("10.0.0.8/30", None, pool=True)[0]
    assert (str(whole.start), str(whole.end)) == ("10.0.0.8", "10.0.0.11")


@pytest.mark.parametrize(
    ("ip", "signed"),
    [
        ("10.0.200.255", [10, 0, -56, -1]),
        ("fd00::80", [-3, *[0] * 14, -128]),
        ("::ffff:10.0.0.1", [0] * 10 + [-1, -1, 10, 0, 0, 1]),
    ],
)
def test_clients_see_the_bytes_of_an_address_with_a_sign(ip: str, signed: list[int]) -> None:
    assert UsedIpModel(ip=ip).extra_view() == {"ip_in_binary": signed}
