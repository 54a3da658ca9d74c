"""Writes the workflows of the demo's pack from the table of scenes: `python -m demo.workflows`."""

from pathlib import Path
from typing import Any

from demo import scenes
from demo.layout import Node, Page, Source
from demo.models import ENCODER
from demo.scenes import SCENES, Result, Scene
from demo.subgraph import FIRST, subgraph

MODELS_COLOR, TEXT_COLOR, IMAGE_COLOR, MASK_COLOR, RESULT_COLOR = "#3f789e", "#777", "#88A", "#A88", "#8A8"
NOTE = """## {title}

{text}

This is the demo's small world: emoji, {size} x {size} pixels. It needs, in ComfyUI's `models` folder:

- `checkpoints/`: {checkpoint}
- `ipadapter/`: {adapter}
- `clip_vision/`: the folder {encoder}

In a git checkout of IP-Adapter Studio, `scripts/demo.sh --install` copies them there, and the reference pictures \
to `input`."""
NOTE_HEIGHT, PICTURE_HEIGHT, RESULT_WIDTH = 330, 330, 270  # pixels; five results fit a screen with their texts
SAMPLING = [scenes.SEED, "fixed", scenes.STEPS, scenes.CFG, scenes.SAMPLER, scenes.SCHEDULER, 1]
ENLARGING = ["lanczos", scenes.ENLARGED]
OTHERS = ["as trained", ""]  # crop and image strengths of Apply IP-Adapter from Image


def build(scene: Scene) -> Page:
    """The workflow of a scene: models and references, then a column for each result."""
    page = Page()
    page.column(340)
    names = {"checkpoint": scenes.CHECKPOINT, "adapter": scenes.ADAPTER, "encoder": Path(ENCODER).name}
    page.note(NOTE.format(title=scene.title, text=scene.text, size=scenes.SIZE, **names), NOTE_HEIGHT)
    page.group("Models", MODELS_COLOR)
    checkpoint = page.add("CheckpointLoaderSimple", widgets=[scenes.CHECKPOINT])
    adapter = page.add("IPALoadAdapter", widgets=[scenes.ADAPTER, scenes.ENCODER, 0])

    parts = Parts(page, scene, checkpoint, adapter)
    for result in scene.results:
        parts.branch(result)
    return page


class Parts:
    """What the branches of a workflow share, and how a branch is made from it."""

    def __init__(self, page: Page, scene: Scene, checkpoint: Node, adapter: Node) -> None:
        self.page, self.scene, self.checkpoint, self.adapter = page, scene, checkpoint, adapter
        self.images: list[Node] = []
        self.tokens: list[Node] = []
        for number, file in enumerate(scene.references):
            self._reference(file, ("First", "Second")[number] if len(scene.references) > 1 else "")
        self.masks = self._masks() if scene.in_halves else []

        page.group("Text and size", TEXT_COLOR)
        prompts = {result.prompt for result in scene.results}
        self.prompt = self._prompt("Prompt", *prompts) if len(prompts) == 1 else None
        self.negative = self._prompt("Negative prompt", "")
        size = [scenes.SIZE, scenes.SIZE, scene.results[0].count]
        self.latent = page.add("EmptyLatentImage", widgets=size)

    def branch(self, result: Result) -> None:
        """Apply, sample, decode, save."""
        page = self.page
        is_alone = len(self.scene.results) == 1
        page.column(RESULT_WIDTH)
        page.group("Result" if is_alone else result.label, RESULT_COLOR)
        model = self._applied(result)
        prompt = self.prompt or self._prompt("Prompt", result.prompt)
        if is_alone:
            page.column()
            page.group("Picture", RESULT_COLOR)
        sources = {"model": model, "positive": (prompt, 0), "negative": (self.negative, 0)}
        sources |= {"latent_image": (self.latent, 0), "vae": (self.checkpoint, 2)}
        enlarged = _drawn(page, sources) if is_alone else page.add_subgraph(_draw(), sources)
        title = "Pictures" if result.count > 1 else result.label
        page.add("SaveImage", {"images": (enlarged, 0)}, [self.scene.name], title=title, height=PICTURE_HEIGHT)

    def _applied(self, result: Result) -> Source:
        settings = [result.strength, 0, 1, result.preset]
        model: Source = (self.checkpoint, 0)
        if self.masks:
            for image, mask, side in zip(self.images, self.masks, ("left", "right"), strict=True):
                sources = {"model": model, "adapter": (self.adapter, 0), "image": (image, 0), "mask": (mask, 0)}
                model = self.page.add("IPAApplyImage", sources, [*settings, *OTHERS], title=f"Apply on the {side}"), 0
            return model
        tokens = self.tokens[0]
        if len(self.tokens) > 1:
            both = {f"tokens.tokens{number}": (node, 0) for number, node in enumerate(self.tokens)}
            weights = ", ".join(f"{factor:g}" for factor in result.mix)
            tokens = self.page.add("IPACombineTokens", both, ["add", weights])
        sources = {"model": model, "adapter": (self.adapter, 0), "tokens": (tokens, 0)}
        return self.page.add("IPAApply", sources, settings), 0

    def _reference(self, file: str, which: str) -> None:
        title = f"{which} reference" if which else "Reference"
        self.page.column()
        self.page.group(title, IMAGE_COLOR)
        image = self.page.add("LoadImage", widgets=[file, "image"], title=title)
        self.images.append(image)
        if not self.scene.in_halves:
            sources = {"adapter": (self.adapter, 0), "image": (image, 0)}
            self.tokens.append(self.page.add("IPAEncodeImage", sources, ["center"]))

    def _masks(self) -> list[Node]:
        """Of the left and the right half."""
        self.page.column()
        self.page.group("Regions", MASK_COLOR)
        unused = [0.25, 0.25, 0.5, 0.5]  # of a box
        return [
            self.page.add(
                "IPARegion",
                widgets=[side, 0, False, *unused, scenes.SIZE, scenes.SIZE],
                title=f"{side.capitalize()} half",
            )
            for side in ("left", "right")
        ]

    def _prompt(self, title: str, text: str) -> Node:
        return self.page.add("CLIPTextEncode", {"clip": (self.checkpoint, 1)}, [text], title=title, height=100)


def _drawn(page: Page, sources: dict[str, Source]) -> Node:
    """Sample, decode, enlarge."""
    given = dict(sources)
    decoding = {"vae": given.pop("vae")} if "vae" in given else {}
    latent = page.add("KSampler", given, SAMPLING)
    picture = page.add("VAEDecode", {"samples": (latent, 0), **decoding})
    return page.add("ImageScaleBy", {"image": (picture, 0)}, ENLARGING, title="Enlarge")


def _draw() -> dict[str, Any]:
    """The same as a subgraph: what is equal in all columns of a workflow."""
    inner = Page(first=FIRST)
    inner.column()
    _drawn(inner, {})
    sampler, decode, enlarge = inner.nodes
    inputs: dict[str, Source] = {
        entry["name"]: (sampler, slot) for slot, entry in enumerate(sampler["inputs"]) if "widget" not in entry
    }
    inputs["vae"] = decode, 1
    return subgraph("Sample and enlarge", inner, inputs, {"image": (enlarge, 0)})


def main() -> None:
    for scene in SCENES:
        scene.path.write_text(build(scene).text(), encoding="utf-8")


if __name__ == "__main__":
    main()
