from __future__ import annotations

from durable.client.backoff import Backoff, Tries


class Clock:
    """Time that only the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_pauses_grow_up_to_the_cap_and_are_random() -> None:
    plan = Backoff(first=1, cap=4, patience=None)
    rounds = []
    for _ in range(200):
        tries = plan.start()
        rounds.append([tries.pause() or 0.0 for _ in range(6)])
    longest = [max(column) for column in zip(*rounds, strict=True)]
    for pause, bound in zip(longest, [1, 2, 4, 4, 4, 4], strict=True):
        assert bound / 2 < pause <= bound
    assert len({tuple(each) for each in rounds}) == len(rounds)


def test_what_the_server_asks_for_is_the_least() -> None:
    pause = Backoff(first=0.5, patience=None).start().pause(at_least=7)
    assert pause is not None
    assert 7 <= pause <= 7.5


def test_patience_counts_from_the_first_failure_to_the_next_success() -> None:
    clock = Clock()
    tries = Tries(Backoff(patience=10), clock)
    clock.now += 1000
    assert tries.pause() is not None
    clock.now += 9.9
    assert tries.pause() is not None
    tries.succeeded()
    clock.now += 9.9
    assert tries.pause() is not None
    clock.now += 10
    assert tries.pause() is None


def test_a_pause_that_patience_would_not_outlive_is_not_begun() -> None:
    assert Tries(Backoff(patience=10), Clock()).pause(at_least=11) is None


def test_an_answer_renews_patience_but_the_pauses_go_on_growing() -> None:
    clock = Clock()
    tries = Tries(Backoff(first=1, cap=64, patience=10), clock)
    for _ in range(20):
        clock.now += 9
        assert tries.pause() is not None
        tries.reached()
    assert tries.failures == 20


def test_no_patience_is_one_try() -> None:
    assert Backoff(patience=0).start().pause() is None
