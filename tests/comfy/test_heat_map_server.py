"""Heat maps in a real server: what is sampled again for them, and what is not."""

import io

import numpy as np
import pytest
from PIL import Image

from demo.client import Client, Prompt, Run
from support import graphs
from support.graphs import node, simple, with_inputs

pytest_plugins = ["support.server"]

RECORD, HEAT = "record", "heat"
PLAIN = {"adapter": 0, "reference": 0, "step": 0, "blending": 0.6}
pytestmark = pytest.mark.smoke


def recorded(seed: int, **apply: float) -> Prompt:
    prompt = with_inputs(simple(seed=seed, **apply), graphs.SAMPLER, model=[RECORD, 0])
    prompt[RECORD] = node("IPARecord", model=[graphs.APPLY, 0])
    prompt[HEAT] = node("IPAHeatMap", record=[RECORD, 1], image=[graphs.DECODE, 0], **PLAIN)
    return prompt


def picture(client: Client, run: Run) -> np.ndarray:
    """What the node shows."""
    assert run.end == "execution_success", run.error
    (content,) = client.files(run, HEAT)
    with Image.open(io.BytesIO(content)) as shown:
        return np.asarray(shown)[..., :3]


def test_looking_at_another_part_samples_nothing_and_another_seed_records_anew(client: Client) -> None:
    prompt = recorded(seed=71)
    run = client.run(prompt)
    whole = picture(client, run)
    assert whole.shape == (64, 64, 3)
    assert graphs.SAMPLER in run.executed
    step = client.run(with_inputs(prompt, HEAT, step=2, blending=1.0))
    assert step.executed == [HEAT]
    assert (picture(client, step) != whole).any()
    again = client.run(with_inputs(prompt, graphs.SAMPLER, seed=72, steps=1))
    picture(client, again)
    assert {graphs.SAMPLER, HEAT} <= set(again.executed)
    assert not {RECORD, graphs.APPLY} & set(again.executed)
    beyond = client.run(with_inputs(with_inputs(prompt, graphs.SAMPLER, seed=72, steps=1), HEAT, step=2))
    assert "step 2 of a sampling with 1" in beyond.error


def test_a_picture_from_elsewhere_is_not_shown_before_anything_was_sampled(client: Client) -> None:
    # another strength, so that the record is not the one of an earlier sampling
    prompt = with_inputs(recorded(seed=73, strength=0.37), HEAT, image=[graphs.IMAGE, 0])
    prompt[graphs.SAMPLER]["inputs"]["model"] = [graphs.APPLY, 0]
    run = client.run(prompt)
    assert run.end == "execution_error"
    assert "connect the model of Record IP-Adapter Heat Map to the sampler" in run.error
