"""Prompts run one after another in a ComfyUI server, with live progress."""

import io
import time

from PIL import Image
from rich.console import Console
from safetensors.torch import load
from torch import Tensor

from demo import graph
from demo.client import Client, Event, Prompt, Run

progress = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


class DemoError(Exception):
    """Something the user can put right; the message says what."""


def run(client: Client, prompt: Prompt, name: str) -> Run:
    """Run a prompt to its end and show how far it is.

    Raises:
        DemoError: a node failed, or somebody interrupted it.
    """
    start = time.monotonic()
    samplers = graph.ids_in_order(prompt, "KSampler")
    sampled: list[str] = []
    with progress.status(f"{name} …") as status:  # a live line on a terminal, nothing elsewhere

        def show(event: Event) -> None:
            node = event.data.get("node")
            if event.type == "progress" and node in samplers:
                if node not in sampled:
                    sampled.append(node)
                step = f"step {event.data['value']} of {event.data['max']}"
                status.update(f"{name}: picture {len(sampled)} of {len(samplers)}, {step}")

        done = client.run(prompt, show)
    if done.end != "execution_success":
        raise DemoError(done.error or f"{name} was interrupted")
    progress.print(
        f"demo: {name}: {len(samplers)} x {_steps(prompt, samplers)} steps, {time.monotonic() - start:.1f} s"
    )
    return done


def pictures(client: Client, done: Run, prompt: Prompt) -> list[Image.Image]:
    """What a run saved, in the order of the workflow's branches."""
    saved = (client.files(done, node) for node in graph.ids_in_order(prompt, "SaveImage"))
    return [Image.open(io.BytesIO(content)).convert("RGB") for files in saved for content in files]


def latent(client: Client, done: Run, node: str) -> Tensor:
    """What a SaveLatent of a run saved."""
    (content,) = client.files(done, node)
    return load(content)["latent_tensor"]


def _steps(prompt: Prompt, samplers: list[str]) -> int:
    steps: int = prompt[samplers[0]]["inputs"]["steps"]
    return steps
