from __future__ import annotations

import pytest

from durable.dev.comeback import HOPELESS, LONGEST_PAUSE, MOST_QUICK_DEATHS, QUICK_SECONDS, Comeback, end_of


def test_what_is_killed_by_hand_comes_back_at_once_however_often() -> None:
    comeback = Comeback()
    for _ in range(MOST_QUICK_DEATHS * 3):
        assert comeback.pause_after(-9, QUICK_SECONDS) == 0


def test_quick_deaths_make_pauses_longer_and_are_given_up() -> None:
    comeback = Comeback()
    pauses = [comeback.pause_after(1, 0.5) for _ in range(MOST_QUICK_DEATHS + 1)]
    assert pauses == [0, 1, 2, 4, LONGEST_PAUSE, None]


def test_a_long_life_is_forgiven_the_deaths_before_it() -> None:
    comeback = Comeback()
    for _ in range(MOST_QUICK_DEATHS):
        comeback.pause_after(1, 0.5)
    comeback.pause_after(1, QUICK_SECONDS)
    assert comeback.pause_after(1, 0.5) == 0


@pytest.mark.parametrize("code", sorted(HOPELESS))
def test_what_is_not_set_up_is_not_started_again(code: int) -> None:
    assert Comeback().pause_after(code, 3600) is None


@pytest.mark.parametrize(
    ("code", "words"),
    [(70, "w ended with code 70"), (-9, "w was killed (signal 9)"), (-11, "w crashed (signal 11)")],
)
def test_an_end_is_told_in_words(code: int, words: str) -> None:
    assert end_of("w", code) == words
