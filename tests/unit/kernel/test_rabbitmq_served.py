"""What is remembered of requests that were answered."""

from __future__ import annotations

from caelum.kernel.rabbitmq_served import ServedRequests


def test_that_a_request_was_done_is_known_for_longer_than_its_answer() -> None:
    served = ServedRequests(most=4, most_bytes=100)
    for number in range(4):
        served.end(f"request{number}", b"x" * 40)
    found = [served.find(f"request{number}") for number in range(4)]
    assert [one is not None and one.done for one in found] == [True] * 4
    assert [None if one is None else one.answer for one in found] == [None, None, b"x" * 40, b"x" * 40]


def test_so_many_are_known_and_the_room_of_what_is_forgotten_is_free() -> None:
    served = ServedRequests(most=2, most_bytes=100)
    for number in range(10):
        served.end(f"request{number}", b"x" * 50)
    assert served.find("request7") is None
    assert [one is not None and one.answer for one in map(served.find, ("request8", "request9"))] == [b"x" * 50] * 2


def test_an_answer_that_is_given_twice_counts_once() -> None:
    served = ServedRequests(most=10, most_bytes=100)
    for _ in range(5):
        served.end("request", b"x" * 60)
    found = served.find("request")
    assert found is not None
    assert found.answer == b"x" * 60
