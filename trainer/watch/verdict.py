"""Whether an adapter uses its reference: what a validation can say for sure, in a sentence.

The gap to a wrong reference is a mean over few pictures, so it is judged by Student's t, which is wide for few of them.
"""

from collections.abc import Mapping
from typing import Any

# 97.5 % quantiles by degrees of freedom: 19 in 20 means lie within that many standard errors
_QUANTILES = {
    1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 10: 2.23, 12: 2.18, 14: 2.14,
    16: 2.12, 20: 2.09, 25: 2.06, 30: 2.04, 40: 2.02, 60: 2.00, 120: 1.98,
}  # fmt: skip
_NOTICEABLE = 0.01  # of the loss: a gap that is surely smaller is as good as none
_MOST_PICTURES = 1000


def verdict_of(validation: Mapping[str, Any]) -> str:
    """What a "validation" record of metrics.jsonl shows: apart, not apart, or too few pictures to be sure."""
    numbers: list[Any] = [validation.get(name) for name in ("true", "shuffled", "gap_shuffled", "gap_error")]
    if None in numbers:
        return "The validation loss is not a number: see the training loss for when that began."
    true, shuffled, gap, error = map(float, numbers)
    pictures = int(validation["pictures"])
    bound, noticeable = _quantile(pictures) * error, _NOTICEABLE * true
    losses = f"validation loss from {true:.4f} to {shuffled:.4f}"
    held_out = f"{pictures} held-out pictures"
    if gap > bound:
        return f"The adapter uses the reference: another picture's in its place raises the {losses} ({held_out})."
    if gap < -bound:
        return f"Something is wrong: another picture's reference in its place lowers the {losses} ({held_out})."
    if abs(gap) + bound < noticeable:
        return (
            "No sign yet that the adapter uses the reference: another picture's in its place changes the validation "
            f"loss by less than {_NOTICEABLE:.0%} ({true:.4f} and {shuffled:.4f}; {held_out})."
        )
    return (
        f"Too few held-out pictures to be sure whether the adapter uses the reference: another picture's in its place "
        f"{'raises' if gap > 0 else 'lowers'} the {losses}, but what {held_out} show may be off by {bound:.4f}. "
        f"{_more(max(abs(gap), noticeable), error * pictures**0.5, pictures)}"
    )


def _more(wanted: float, spread: float, pictures: int) -> str:
    """How many pictures of that spread tell a gap of the wanted size from none."""
    enough = next((n for n in range(pictures + 1, _MOST_PICTURES) if _quantile(n) * spread / n**0.5 < wanted), None)
    if enough is None:
        return "Train on and look again."
    return f"validation.images = {enough} would tell in a new run; or train on and look again."


def _quantile(pictures: int) -> float:
    freedom = max(1, pictures - 1)
    return next(value for degrees, value in reversed(_QUANTILES.items()) if degrees <= freedom)
