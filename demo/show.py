"""The two things `scripts/demo.sh` shows: the six scenes of the demo's world, or one workflow with the user's models."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from demo import checks, graph, rows, session
from demo.checks import Check
from demo.client import Client, Prompt
from demo.judge import Judge
from demo.layout import SIMPLE
from demo.references import PHOTO
from demo.rows import Row, Shown
from demo.scenes import ENLARGED, SCENES, STRENGTH, Scene
from demo.server import ROOT
from demo.session import DemoError, progress

OWN_STRENGTHS = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Outcome:
    """What was drawn, and what holds."""

    rows: tuple[Row, ...]
    checks: tuple[Check, ...]


def scenes(client: Client, inputs: Path, models: Path, photo: Image.Image | None) -> Outcome:
    """Run the six scenes.

    Args:
        inputs: ComfyUI's input folder, filled by `references.put_into`.
        models: the models folder, for diffusers.
        photo: the user's picture, in the first reference's place. Then nothing is claimed about likeness: the world of
            the model is emoji.

    Raises:
        DemoError: a workflow failed.
    """
    info, judge = client.get("/object_info"), Judge()
    drawn: list[Row] = []
    proofs: list[Check] = []
    for scene in SCENES:
        files = [PHOTO if photo else scene.references[0], *scene.references[1:]]
        prompt = graph.of_scene(info, scene, files[0])
        references = [Image.open(inputs / file).convert("RGB") for file in files]
        if scene is STRENGTH:
            prompt, latents, euler = graph.with_latents(prompt)
        done = session.run(client, prompt, scene.name)
        pictures = session.pictures(client, done, prompt)
        if scene is STRENGTH:
            proofs += checks.arithmetic({at: session.latent(client, done, node) for at, node in latents.items()})
            expected = _in_diffusers(models, inputs / files[0], prompt, graph.sampler_of(prompt, euler))
            proofs.append(checks.same_as_diffusers(session.latent(client, done, euler), expected))
        similarities, meaning = _judged(judge, scene, references, pictures)
        proofs += meaning if photo is None else []
        drawn.append(_row(scene, files, references, pictures, similarities))
    return Outcome(tuple(drawn), tuple(proofs))


def own_models(client: Client, inputs: Path, photo: Image.Image, checkpoint: str, adapter: str) -> Outcome:
    """Run the simple workflow with the user's models.

    Raises:
        DemoError: the workflow failed.
        UnknownFileError: ComfyUI does not list one of the models.
    """
    prompt = graph.of_own_models(client.get("/object_info"), checkpoint, adapter)
    photo.save(inputs / graph.REFERENCE)
    latents: dict[float | None, Tensor] = {}
    pictures = []
    for strength in (None, *OWN_STRENGTHS):
        name = "without adapter" if strength is None else f"strength {strength:g}"
        changed = graph.at_strength(prompt, strength)
        done = session.run(client, changed, name)
        latents[strength] = session.latent(client, done, graph.LATENT)
        if strength is not None:
            pictures += session.pictures(client, done, changed)
    labels = [f"strength {strength:g}" for strength in OWN_STRENGTHS]
    shown = _shown(labels, pictures, rows.whole(Judge(), [photo], pictures))
    row = Row("One reference image", SIMPLE.name, f"{adapter} on {checkpoint}", (Shown("reference", photo),), shown)
    return Outcome((row,), tuple(checks.arithmetic(latents)))


def _judged(
    judge: Judge, scene: Scene, references: Sequence[Image.Image], pictures: Sequence[Image.Image]
) -> tuple[list[tuple[float, ...]], list[Check]]:
    """Similarities to show, and what they prove. What was enlarged for the eye is judged at its own size."""
    pictures = [picture.reduce(ENLARGED) for picture in pictures]
    if scene.in_halves:
        left, right = rows.halves(judge, references, pictures)
        own = [(of_left[0], of_right[1]) for of_left, of_right in zip(left, right, strict=True)]
        return own, [checks.halves_apart((left, right))]
    similarities = rows.whole(judge, references, pictures)
    if scene is STRENGTH:
        return similarities, [checks.nearer_with_strength([similarity for (similarity,) in similarities])]
    return similarities, []


def _row(
    scene: Scene,
    files: Sequence[str],
    references: Sequence[Image.Image],
    pictures: Sequence[Image.Image],
    similarities: Sequence[tuple[float, ...]],
) -> Row:
    labels = [Path(file).stem.replace("_", " ") for file in files]
    shown = tuple(Shown(label, picture) for label, picture in zip(labels, references, strict=True))
    return Row(scene.title, scene.path.name, scene.text, shown, _shown(scene.labels, pictures, similarities))


def _shown(
    labels: Sequence[str], pictures: Sequence[Image.Image], similarities: Sequence[tuple[float, ...]]
) -> tuple[Shown, ...]:
    return tuple(Shown(*parts) for parts in zip(labels, pictures, similarities, strict=True))


def _in_diffusers(models: Path, image: Path, prompt: Prompt, sampler: str) -> Tensor:
    """The latent of a sampler by `demo/reference.py`, in a process of its own."""
    progress.print("demo: strength 1 with diffusers …")
    latent = image.parent.parent / "latent.safetensors"
    command = [sys.executable, "-m", "demo.reference", "--models", str(models)]
    command += ["--image", str(image), "--output", str(latent)]
    command += ["--settings", json.dumps(graph.settings(prompt, sampler))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DemoError(f"the run with diffusers failed:\n{done.stderr[-2000:]}")
    return load_file(latent)["latent"]
