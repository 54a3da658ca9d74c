"""Whose every row of a batch is, for each way packs change a batch; what fits no way is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipadapter_core.branch.rows import COND, UNCOND, Group, Place, Rows, attention_rows, batch_rows
from ipadapter_core.errors import MismatchError

C, U = Group(0, COND), Group(1, UNCOND)
NAMES = {0: "c", 1: "u"}


def spelled(rows: Rows) -> str:
    """A letter for each row."""
    return "".join(NAMES[side] * rows.latents for side in rows.sides)


@pytest.mark.parametrize(
    ("count", "groups", "latents", "wanted"),
    [
        (2, [U, C], 1, "uc"),
        (6, [U, C], 3, "uuuccc"),
        (3, [C], 3, "ccc"),
        (8, [U, C], 1, "ucucucuc"),  # four tiles in one call
        (12, [U, C], 2, "uuccuuccuucc"),
        (6, [C], 2, "cccccc"),
        (1, [C], 2, "c"),  # a pack that splits the latents
        (5, [C, C], 2, "ccccc"),
        (4, [U, C], None, "uucc"),
    ],
)
def test_rows_of_a_call(count: int, groups: list[Group], latents: int | None, wanted: str) -> None:
    assert spelled(batch_rows(count, groups, latents)) == wanted


@pytest.mark.parametrize(
    ("count", "groups", "latents"),
    [(3, [U, C], 1), (2, [U, C], 2), (4, [U, C, C], 1), (0, [U, C], 1), (3, [U, C], None)],
)
def test_rows_of_a_call_that_fit_no_pattern(count: int, groups: list[Group], latents: int | None) -> None:
    with pytest.raises(
        MismatchError, match=rf"the model is called with {count} rows, for conditionings \(negative, pos"
    ):
        batch_rows(count, groups, latents)


@pytest.mark.parametrize(
    ("count", "groups", "latents", "wanted"),
    [
        (3, [U, C], 1, "ucc"),  # attention couple: two prompts
        (4, [C, U], 1, "cccu"),
        (6, [U, C], 2, "uucccc"),
        (8, [U, C], 2, "uucccccc"),
        (3, [C], 1, "ccc"),
        (5, [U, C, C], 1, "ucccc"),
        (2, [U], 1, "uu"),
    ],
)
def test_rows_inside_the_model(count: int, groups: list[Group], latents: int, wanted: str) -> None:
    batch = Rows(tuple(groups), latents)
    assert spelled(attention_rows(count, batch, groups)) == wanted


def test_a_list_lengthened_along_with_the_rows_says_whose_they_are() -> None:
    batch = Rows((U, C), 2)
    assert spelled(attention_rows(8, batch, [U, C, U, C])) == "uuccuucc"
    assert spelled(attention_rows(4, batch, [U, C, U, C])) == "uucc"


def test_couples_go_by_the_number_and_keep_the_side() -> None:
    """DualCFG's negative is number 0, its middle 1: a couple repeats all but number 1."""
    negative, middle, positive = Group(0, UNCOND), Group(1, UNCOND), Group(2, COND)
    batch = Rows((positive, middle, negative), 1)
    assert spelled(attention_rows(5, batch, batch.blocks)) == "ccuuu"


def test_rows_inside_the_model_that_fit_no_pattern() -> None:
    batch = Rows((U, C), 2)
    with pytest.raises(MismatchError, match="an attention layer is called with 5 rows, for conditionings"):
        attention_rows(5, batch, batch.blocks)
    with pytest.raises(MismatchError, match="an attention layer is called with 2 rows"):
        attention_rows(2, batch, batch.blocks)


def test_a_couple_of_tiles_is_refused() -> None:
    """It takes the first half of the rows for the first conditioning, which of tiles they are not."""
    with pytest.raises(MismatchError, match="an attention layer is called with 6 rows"):
        attention_rows(6, Rows((U, C, U, C), 1), [U, C])
    assert spelled(attention_rows(8, Rows((U, C, U, C), 1), [U, C])) == "ucucucuc"


def test_equal_sides_at_different_places_are_told_apart() -> None:
    left, right = (Group(0, COND, Place(0, start, 4, 4, (4, 8))) for start in (0, 4))
    assert batch_rows(4, [left, right], 2).places == (left.place, right.place)
    with pytest.raises(MismatchError):
        batch_rows(3, [left, right], 2)


@given(
    groups=st.lists(st.sampled_from([U, C]), min_size=1, max_size=4),
    latents=st.integers(1, 4),
    tiles=st.integers(1, 5),
)
def test_tiles_are_whole_batches_behind_each_other(groups: list[Group], latents: int, tiles: int) -> None:
    one = batch_rows(len(groups) * latents, groups, latents)
    many = batch_rows(tiles * len(groups) * latents, groups, latents)
    assert many.latents == one.latents
    assert many.blocks == one.blocks * tiles
