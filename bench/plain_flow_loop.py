"""A plain training loop for transformers that learn by flow matching, as a person writes it with diffusers alone: the
yardstick for our trainer.

The whole pipeline stays in float32 under accelerate's autocast; text and pictures are encoded in every step; the adapter
is of diffusers' own IP-Adapter processors (`plain_flow_models.py`); no data workers, plain AdamW, every loss is read and
printed. A dropped image is features of zeros.
"""

import random
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from official_loop import AdapterSize, Pictures, Settings
from plain_flow_models import PlainModel
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, default_collate
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection


class Captioned(Pictures):
    """With captions as they are, for the pipeline to encode."""

    def caption(self, text: str) -> str:
        return text


class PlainFlowLoop:
    """One training of one family.

    Attributes:
        model: pipeline and adapter.
    """

    def __init__(self, settings: Settings, model_class: type[PlainModel], size: AdapterSize) -> None:
        torch.manual_seed(settings.seed)
        random.seed(settings.seed)
        self.accelerator = Accelerator(mixed_precision=settings.precision, cpu=settings.device == "cpu")
        device = self.accelerator.device
        encoder = CLIPVisionModelWithProjection.from_pretrained(settings.encoder, torch_dtype=torch.float32)
        self.image_encoder = encoder.requires_grad_(False).to(device)
        self.model = model_class(settings.base, encoder.config, size, device)
        trained = [each for each in self.model.transformer.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        side = encoder.config.image_size
        processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side)
        loader = DataLoader(
            Captioned(settings.data, None, processor, settings.resolution),
            batch_size=settings.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=0,
            collate_fn=default_collate,
        )
        self._prepared, self.optimizer, self._loader = self.accelerator.prepare(
            self.model.transformer, optimizer, loader
        )
        self._batches = self._endless()
        self.step_number = 0

    def _endless(self) -> Iterator[dict[str, Any]]:
        while True:
            yield from self._loader

    def step(self) -> float:
        """One optimiser step on the next batch; its loss."""
        batch = next(self._batches)
        latents = self.encode_pixels(batch["pixels"])
        noise = torch.randn_like(latents)
        times = torch.sigmoid(torch.randn(len(latents), device=latents.device))
        text = self.encode_text(batch["tokens"])
        features = self.encode_references(batch["reference"], batch["drops_image"])
        loss = self.update(latents, noise, times, text, features).item()
        print(f"Step {self.step_number}, step_loss: {loss}", file=sys.stderr)
        self.step_number += 1
        return float(loss)

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        with self.accelerator.autocast():
            return self.model.latents(pixels.to(self.accelerator.device)).float()

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> Any:
        with self.accelerator.autocast():
            return self.model.text(list(captions))

    @torch.no_grad()
    def encode_references(self, pixels: Tensor, dropped: Tensor) -> Tensor:
        """Features (B, E) or (B, S, E), zeros where dropped."""
        with self.accelerator.autocast():
            seen = self.image_encoder(pixels.to(self.accelerator.device), output_hidden_states=True)
        features = self.model.features(seen)
        kept = 1 - dropped.to(features.device, features.dtype)
        return features * kept.view(-1, *[1] * (features.ndim - 1))

    def update(self, latents: Tensor, noise: Tensor, times: Tensor, text: Any, features: Tensor) -> Tensor:
        """One optimiser step on what is encoded; its loss, 0-dim."""
        share = times.view(-1, 1, 1, 1)
        noisy = (1 - share) * latents + share * noise
        with self.accelerator.autocast():
            answer = self.model.velocity(self._prepared, noisy, times, text, features)
        loss = functional.mse_loss(answer.float(), noise - latents)
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()
