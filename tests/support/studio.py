"""Pictures of the demo's world, drawn by our nodes between ComfyUI's own, in a ComfyUI started by `comfy_host`."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from demo import models, scenes

from . import comfy_host

MODEL_FOLDERS = {name: name for name in ("checkpoints", "clip_vision", "ipadapter")}
ENCODER = f"{Path(models.ENCODER).name}/"  # as IPALoadAdapter lists a folder
NOISES = 4  # pictures drawn together, each from its own noise


@contextmanager
def model_folders(folder: Path, folders: Mapping[str, str] = MODEL_FOLDERS) -> Iterator[None]:
    """Inside, ComfyUI finds the models below a folder as well, before its own.

    Args:
        folders: subfolder by kind of model.
    """
    folder_paths = importlib.import_module("folder_paths")
    places = {kind: str((folder / name).resolve()) for kind, name in folders.items()}
    for kind, place in places.items():
        folder_paths.add_model_folder_path(kind, place, is_default=True)
    try:
        yield
    finally:
        for kind, place in places.items():
            folder_paths.folder_names_and_paths[kind][0].remove(place)


class Studio:
    """Checkpoint, text and sampler of the demo, with the settings of `demo/scenes.py`.

    Needs `model_folders`. A MODEL is ComfyUI's; `model` is the base without adapter.
    """

    def __init__(self) -> None:
        importlib.import_module("comfy.utils").PROGRESS_BAR_ENABLED = False  # one bar for each of hundreds of pictures
        self.model, self._clip, self.vae = core("CheckpointLoaderSimple", ckpt_name=scenes.CHECKPOINT)
        self._texts: dict[str, Any] = {}

    def load_adapter(self, file: str) -> Any:
        """IPALoadAdapter."""
        return comfy_host.run("IPALoadAdapter", adapter_file=file, image_encoder=ENCODER)

    def apply(
        self, adapter: Any, reference: Image.Image, strength: float = 1.0, mask: Tensor | None = None, onto: Any = None
    ) -> Any:
        """IPAApplyImage.

        Args:
            mask: (H, W).
            onto: MODEL to patch; None is the base.
        """
        return comfy_host.run(
            "IPAApplyImage",
            model=onto or self.model,
            adapter=adapter,
            image=to_tensor([reference]),
            strength=strength,
            start_percent=0.0,
            end_percent=1.0,
            layer_preset="all",
            mask=mask if mask is None else mask[None].float(),
        )

    def sample(self, model: Any, prompt: str = "", count: int = NOISES) -> Tensor:
        """KSampler: latents (count, 4, h, w)."""
        (empty,) = core("EmptyLatentImage", width=scenes.SIZE, height=scenes.SIZE, batch_size=count)
        (latent,) = core(
            "KSampler",
            model=model,
            positive=self.text(prompt),
            negative=self.text(""),
            latent_image=empty,
            seed=scenes.SEED,
            steps=scenes.STEPS,
            cfg=scenes.CFG,
            sampler_name=scenes.SAMPLER,
            scheduler=scenes.SCHEDULER,
            denoise=1.0,
        )
        samples: Tensor = latent["samples"]
        return samples

    def decode(self, latents: Tensor) -> Tensor:
        """VAEDecode: (N, H, W, 3), 0..1."""
        (pixels,) = core("VAEDecode", vae=self.vae, samples={"samples": latents})
        return pixels.float().clamp(0, 1)

    def draw(self, model: Any, prompt: str = "", count: int = NOISES) -> list[Image.Image]:
        """Pictures; the same noises for every model and prompt."""
        return to_pictures(self.decode(self.sample(model, prompt, count)))

    def reconstruct(self, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        """Through the autoencoder and back."""
        (latent,) = core("VAEEncode", vae=self.vae, pixels=to_tensor(pictures))
        return to_pictures(self.decode(latent["samples"]))

    def text(self, prompt: str) -> Any:
        """CLIPTextEncode, once per prompt."""
        if prompt not in self._texts:
            (self._texts[prompt],) = core("CLIPTextEncode", clip=self._clip, text=prompt)
        return self._texts[prompt]


def core(node_id: str, **inputs: object) -> tuple[Any, ...]:
    """Execute one of ComfyUI's own nodes; all its outputs."""
    node: Any = comfy_host.node(node_id)
    with torch.inference_mode():
        outputs: tuple[Any, ...] = getattr(node(), node.FUNCTION)(**inputs)
    return outputs


def to_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """ComfyUI's IMAGE: (N, H, W, 3), 0..1."""
    return torch.from_numpy(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])).float() / 255


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """Of (N, H, W, 3), 0..1."""
    return [Image.fromarray(each) for each in (pixels * 255).round().to(torch.uint8).cpu().numpy()]
