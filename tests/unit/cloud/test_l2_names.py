"""Names of bridges."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from caelum.cloud.l2.extension import LONGEST_NAME, short_name


def test_a_name_that_fits_is_kept() -> None:
    assert short_name("br_", "eth0") == "br_eth0"
    assert short_name("br_", "enp0s31f6abc") == "br_enp0s31f6abc"


@given(st.text(alphabet="abcdefghijklmnop0123456789.", min_size=1, max_size=40))
def test_every_name_fits_and_is_always_the_same(interface: str) -> None:
    name = short_name("br_", interface)
    assert len(name) <= LONGEST_NAME
    assert name == short_name("br_", interface)
    assert name.startswith("br_")
