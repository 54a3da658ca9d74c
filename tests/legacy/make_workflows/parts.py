"""What most workflows have in common: a checkpoint and two prompts in front, a sampler and a picture at the end."""

from collections.abc import Iterator, Mapping
from typing import Any

from .page import Node, Output, Page, facts_of

SD15, SDXL, KOLORS = "v1-5-pruned-emaonly-fp16.safetensors", "sd_xl_base_1.0.safetensors", "kolors_unet.safetensors"
VIT_H = "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors"
BIG_G = "CLIP-ViT-bigG-14-laion2B-39B-b160k.safetensors"
VIT_L = "clip-vit-large-patch14-336.safetensors"
PICTURE = "example.png"
SIDES = {SD15: 512, SDXL: 1024, KOLORS: 1024}  # pixels
WEIGHTS = (0.6, 0.8, 1.0, 0.35)


def combos(kind: str, **fixed: Any) -> Iterator[dict[str, Any]]:
    """Widget values that together cover every option of every combo of a node; `fixed` ones stay."""
    options = {item.name: item.options for item in facts_of(kind).inputs if item.options and item.name not in fixed}
    for number in range(max(map(len, options.values()), default=1)):
        yield {**{name: values[number % len(values)] for name, values in options.items()}, **fixed}


class Scene(Page):
    """A page that begins with a checkpoint and prompts, and can end with a picture."""

    def __init__(self, name: str, checkpoint: str = SD15, *, batch: int = 1) -> None:
        super().__init__(name)
        self.checkpoint, self.batch = checkpoint, batch
        loader = self.add("CheckpointLoaderSimple", ckpt_name=checkpoint)
        self.model, self.clip, self.vae = loader["MODEL"], loader["CLIP"], loader["VAE"]
        self.positive = self.text("a portrait, studio light")
        self.negative = self.text("blurry, noisy")

    def text(self, words: str) -> Output:
        return self.add("CLIPTextEncode", text=words, clip=self.clip)["CONDITIONING"]

    def picture(self) -> Output:
        return self.add("LoadImage", image=PICTURE)["IMAGE"]

    def pictures(self, count: int) -> Output:
        """A batch of two or three references that differ."""
        batch = self.picture()
        for crop_position in ("left", "bottom")[: count - 1]:
            other = self.prepared(crop_position=crop_position)
            batch = self.add("ImageBatch", image1=batch, image2=other)["IMAGE"]
        return batch

    def prepared(self, **widgets: Any) -> Output:
        return self.add("PrepImageForClipVision", image=self.picture(), **widgets)["IMAGE"]

    def vision(self, name: str = VIT_H) -> Output:
        return self.add("CLIPVisionLoader", clip_name=name)["CLIP_VISION"]

    def file(self, name: str) -> Output:
        return self.add("IPAdapterModelLoader", ipadapter_file=name)["IPADAPTER"]

    def half(self) -> Output:
        """A mask of the left half."""
        side = SIDES[self.checkpoint]
        black = self.add("SolidMask", value=0.0, width=side, height=side)["MASK"]
        white = self.add("SolidMask", value=1.0, width=side // 2, height=side)["MASK"]
        return self.add("MaskComposite", destination=black, source=white, operation="add")["MASK"]

    def usual(self) -> dict[str, Output]:
        """The optional inputs that nearly every apply node has: a negative image of noise, and a mask."""
        noise = self.add("IPAdapterNoise", type="gaussian", strength=0.5, blur=3)["IMAGE"]
        return {"image_negative": noise, "attn_mask": self.half()}

    def chain(self, kind: str, **inputs: Any) -> Node:
        """As many nodes of a kind as cover its combos, each patching the model of the one before."""
        fixed = {name: value for name, value in inputs.items() if not isinstance(value, Output)}
        links = {name: value for name, value in inputs.items() if isinstance(value, Output)}
        weight = next((item.name for item in facts_of(kind).widgets if item.name == "weight"), None)
        node = None
        for number, widgets in enumerate(combos(kind, **fixed)):
            given: Mapping[str, Any] = (
                {weight: WEIGHTS[number % len(WEIGHTS)]} if weight and weight not in inputs else {}
            )
            node = self.add(kind, model=self.model, **links, **given, **widgets)
            self.model = node["MODEL"]
        assert node is not None
        return node

    def finish(self) -> "Scene":
        """Sampler, decoder and the saved picture."""
        side = SIDES[self.checkpoint]
        latent = self.add("EmptyLatentImage", width=side, height=side, batch_size=self.batch)["LATENT"]
        sampled = self.add(
            "KSampler",
            model=self.model,
            seed=len(self.nodes),
            positive=self.positive,
            negative=self.negative,
            latent_image=latent,
        )["LATENT"]
        decoded = self.add("VAEDecode", samples=sampled, vae=self.vae)["IMAGE"]
        self.add("SaveImage", images=decoded, filename_prefix=self.name)
        return self

    def preview(self, images: Output) -> None:
        self.add("PreviewImage", images=images)
