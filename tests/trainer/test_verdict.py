"""What is said of a validation is what its numbers can carry: apart, not apart, or too few pictures to know."""

import numpy as np
import pytest

from ipadapter_trainer.watch.verdict import verdict_of


def record(true: float, shuffled: float, error: float, pictures: int) -> dict[str, float]:
    return {
        "true": true, "shuffled": shuffled, "gap_shuffled": shuffled - true, "gap_error": error, "pictures": pictures
    }  # fmt: skip


def test_a_large_gap_on_four_pictures_is_not_called_none() -> None:
    said = verdict_of(record(0.212, 0.312, 0.055, 4))
    assert said.startswith("Too few held-out pictures to be sure")
    assert "0.2120" in said
    assert "0.3120" in said
    assert "4 held-out pictures" in said
    assert "the same" not in said


def test_the_number_of_pictures_it_asks_for_would_do() -> None:
    """With that many of the same spread, the same gap is called one."""
    spread = 0.055 * 4**0.5
    wanted = verdict_of(record(0.212, 0.312, 0.055, 4)).partition("validation.images = ")[2].partition(" ")[0]
    assert 4 < int(wanted) < 20
    assert verdict_of(record(0.212, 0.312, spread / int(wanted) ** 0.5, int(wanted))).startswith("The adapter uses")
    less = int(wanted) - 1
    assert not verdict_of(record(0.212, 0.312, spread / less**0.5, less)).startswith("The adapter uses")


@pytest.mark.parametrize(
    ("gap", "error", "said"),
    [
        (0.05, 0.001, "The adapter uses the reference"),
        (0.0002, 0.0005, "No sign yet that the adapter uses the reference"),
        (0.0, 0.0, "No sign yet that the adapter uses the reference"),
        (-0.0002, 0.0005, "No sign yet that the adapter uses the reference"),
        (0.001, 0.001, "Too few held-out pictures"),
        (-0.05, 0.04, "Too few held-out pictures"),
        (-0.05, 0.001, "Something is wrong"),
    ],
)
def test_says_what_is_known(gap: float, error: float, said: str) -> None:
    assert verdict_of(record(0.2, 0.2 + gap, error, 16)).startswith(said)


def test_a_loss_that_is_no_number_decides_nothing() -> None:
    lost = {"true": None, "shuffled": None, "gap_shuffled": None, "gap_error": None, "pictures": 16}
    assert verdict_of(lost).startswith("The validation loss is not a number")


@pytest.mark.parametrize("pictures", [2, 4, 16])
def test_chance_alone_is_rarely_called_a_gap(pictures: int) -> None:
    """Gaps of a reference that tells nothing: one in twenty may look like more, a third of twenty may not."""
    draws = np.random.default_rng(0).normal(0, 0.02, (2000, pictures))
    said = [
        verdict_of(record(0.2, 0.2 + float(gap.mean()), float(gap.std(ddof=1)) / pictures**0.5, pictures))
        for gap in draws
    ]
    wrong = sum(words.startswith(("The adapter uses", "Something is wrong")) for words in said)
    assert 0.03 < wrong / len(said) < 0.07
