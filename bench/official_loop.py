"""A plain loop that does what tencent-ailab's `tutorial_train.py` does, written from a description of it: the
yardstick for our trainer.

Everything is encoded in every step; the frozen UNet stays in float32 under autocast while autoencoder, text and image
encoder have the low precision; the adapter's layers live in attention processors, which keep an attention map; the data
loader has no workers; dropped images are found by a Python loop over the samples; AdamW is plain; and each step's loss
is gathered, read and printed.
"""

import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

TOKENS = 4
DROP = 0.05  # each: text only, image only, both
WEIGHT_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """Arguments of the tutorial's command line that matter here; `precision` is accelerate's mixed_precision."""

    base: Path
    encoder: Path
    data: Path
    resolution: int = 512
    batch_size: int = 8
    learning_rate: float = 1e-4
    weight_decay: float = 1e-2
    seed: int = 0
    precision: str = "no"
    device: str = "cpu"


@dataclass(frozen=True)
class AdapterSize:
    """Sizes of an adapter: image tokens, the resampler of one that has it, the rank of a LoRA beside it."""

    tokens: int = TOKENS
    width: int = 1280
    depth: int = 4
    head_dim: int = 64
    rank: int = 128


class Projection(nn.Module):
    """Global image embedding (B, E) to tokens (B, N, C), under the published names."""

    def __init__(self, image_dim: int, context_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(image_dim, TOKENS * context_dim)
        self.norm = nn.LayerNorm(context_dim)

    def forward(self, embeds: Tensor) -> Tensor:
        tokens: Tensor = self.norm(self.proj(embeds).unflatten(-1, (TOKENS, -1)))
        return tokens


class PlainProcessor(nn.Module):
    """Attention without an image; a module, as it stands in the list with the others."""

    def forward(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = heads_of(attn.to_q(hidden_states), attn.heads)
        return _finish(attn, attention(query, attn.to_k(context), attn.to_v(context), attn.heads))


class ImageProcessor(nn.Module):
    """Decoupled cross-attention whose context is text and image tokens in one tensor."""

    def __init__(self, attn: Any) -> None:
        super().__init__()
        context_dim, width = attn.to_k.in_features, attn.to_k.out_features
        self.to_k_ip = nn.Linear(context_dim, width, bias=False)
        self.to_v_ip = nn.Linear(context_dim, width, bias=False)
        self.load_state_dict({"to_k_ip.weight": attn.to_k.weight, "to_v_ip.weight": attn.to_v.weight})
        self.attn_map: Tensor | None = None

    def forward(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        text, image = encoder_hidden_states[:, :-TOKENS], encoder_hidden_states[:, -TOKENS:]
        query = heads_of(attn.to_q(hidden_states), attn.heads)
        out = attention(query, attn.to_k(text), attn.to_v(text), attn.heads)
        key, value = self.to_k_ip(image), self.to_v_ip(image)
        out = out + attention(query, key, value, attn.heads)
        with torch.no_grad():  # the tutorial's own order of softmax and product
            self.attn_map = query @ heads_of(key, attn.heads).transpose(-2, -1).softmax(dim=-1)
        return _finish(attn, out)


class Adapter(nn.Module):
    """UNet, projection and the list of processors in one module, which is what accelerate prepares."""

    def __init__(self, unet: Any, projection: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        self.image_proj_model = projection
        self.adapter_modules = nn.ModuleList(unet.attn_processors.values())

    def forward(self, noisy: Tensor, timesteps: Tensor, text: Tensor, embeds: Tensor) -> Tensor:
        context = torch.cat([text, self.image_proj_model(embeds)], dim=1)
        noise: Tensor = self.unet(noisy, timesteps, context).sample
        return noise


class Pictures(Dataset[dict[str, Any]]):
    """The tutorial's JSON list, [{"image_file": …, "text": …}], read whole; paths start from its folder."""

    def __init__(self, path: Path, tokenizer: Any, processor: Any, resolution: int) -> None:
        self.root = path.parent
        self.items = json.loads(path.read_text(encoding="utf-8"))
        self.tokenizer = tokenizer
        self.processor = processor
        self.transform = v2.Compose(
            [
                v2.Resize(resolution, interpolation=v2.InterpolationMode.BILINEAR),
                v2.CenterCrop(resolution),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.5], [0.5]),
            ]
        )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.items[index]
        image = Image.open(self.root / item["image_file"]).convert("RGB")
        chance = random.random()
        drops_image, drops_text = chance < DROP or 2 * DROP <= chance < 3 * DROP, DROP <= chance < 3 * DROP
        return {
            "pixels": self.transform(image),
            "reference": self.reference(image, self.root / item["image_file"]),
            "tokens": self.caption("" if drops_text else item["text"]),
            "drops_image": int(drops_image),
        }

    def reference(self, image: Image.Image, _path: Path) -> Tensor:
        """What is read of the picture."""
        pixels: Tensor = self.processor(images=image, return_tensors="pt").pixel_values[0]
        return pixels

    def caption(self, text: str) -> Any:
        """What is read of its text."""
        return tokenize(self.tokenizer, [text])[0]


class OfficialLoop:
    """The tutorial's training, step by step.

    Attributes:
        adapter: unwrapped; `weights` gives its trained part under the published names.
    """

    def __init__(self, settings: Settings) -> None:
        torch.manual_seed(settings.seed)
        random.seed(settings.seed)
        self.accelerator = Accelerator(mixed_precision=settings.precision, cpu=settings.device == "cpu")
        self.dtype = WEIGHT_DTYPES[settings.precision]
        device = self.accelerator.device
        base = settings.base
        self.schedule = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
        self.tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
        self.text_encoder = _frozen(CLIPTextModel, base, "text_encoder").to(device, self.dtype)
        self.vae = _frozen(_autoencoder_class(base), base, "vae").to(device, self.dtype)
        unet = _frozen(UNet2DConditionModel, base, "unet")
        projection, pictures = self.open_references(settings, unet.config.cross_attention_dim)
        self.set_processors(unet)
        self.adapter = Adapter(unet, projection).to(device)
        optimizer = torch.optim.AdamW(
            [*projection.parameters(), *self.adapter.adapter_modules.parameters()],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        loader = DataLoader(
            pictures,
            batch_size=settings.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=0,
            collate_fn=default_collate,
        )
        self._prepared, self.optimizer, self._loader = self.accelerator.prepare(self.adapter, optimizer, loader)
        self._batches = self._endless()
        self._batch_size = settings.batch_size
        self.step_number = 0

    def open_references(self, settings: Settings, context_dim: int) -> tuple[nn.Module, Pictures]:
        """What makes tokens of a reference, and the data with references; the model that reads them is opened."""
        encoder = _frozen(CLIPVisionModelWithProjection, settings.encoder)
        self.image_encoder = encoder.to(self.accelerator.device, self.dtype)
        vision = encoder.config
        processor = CLIPImageProcessor(size={"shortest_edge": vision.image_size}, crop_size=vision.image_size)
        pictures = Pictures(settings.data, self.tokenizer, processor, settings.resolution)
        return Projection(vision.projection_dim, context_dim), pictures

    def set_processors(self, unet: Any) -> None:
        modules = dict(unet.named_modules())
        unet.set_attn_processor(
            {
                name: ImageProcessor(modules[name.removesuffix(".processor")]) if "attn2" in name else PlainProcessor()
                for name in unet.attn_processors
            }
        )

    def _endless(self) -> Iterator[dict[str, Any]]:
        while True:
            yield from self._loader

    def step(self) -> float:
        """One optimiser step on the next batch; its loss."""
        batch = next(self._batches)
        with torch.no_grad():
            latents = self.encode_pixels(batch["pixels"])
            noise = torch.randn_like(latents)
            timesteps = torch.randint(
                0, self.schedule.config.num_train_timesteps, (len(latents),), device=latents.device
            )
            text = self.encode_text(batch["tokens"])
            embeds = self.encode_references(batch["reference"], batch["drops_image"])
        loss = self.update(latents, noise, timesteps, text, embeds)
        average = self.accelerator.gather(loss.repeat(self._batch_size)).mean().item()
        if self.accelerator.is_main_process:
            print(f"Step {self.step_number}, step_loss: {average}", file=sys.stderr)
        self.step_number += 1
        return float(average)

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        encoded = self.vae.encode(pixels.to(self.accelerator.device, self.dtype))
        latents: Tensor = encoded.latents if isinstance(self.vae, AutoencoderTiny) else encoded.latent_dist.sample()
        return latents * self.vae.config.scaling_factor

    @torch.no_grad()
    def encode_text(self, tokens: Tensor) -> Tensor:
        states: Tensor = self.text_encoder(tokens.to(self.accelerator.device))[0]
        return states

    @torch.no_grad()
    def encode_references(self, pixels: Tensor, dropped: Sequence[int] | Tensor) -> Tensor:
        """Image embeddings (B, E), zeros where dropped, sample by sample."""
        embeds = self.image_encoder(pixels.to(self.accelerator.device, self.dtype)).image_embeds
        return torch.stack(
            [torch.zeros_like(embed) if drop else embed for embed, drop in zip(embeds, dropped, strict=True)]
        )

    def update(self, latents: Tensor, noise: Tensor, timesteps: Tensor, text: Tensor, embeds: Tensor) -> Tensor:
        """One optimiser step on what is encoded; its loss, 0-dim."""
        noisy = self.schedule.add_noise(latents, noise, timesteps)
        prediction = self._prepared(noisy, timesteps, text, embeds)
        loss = functional.mse_loss(prediction.float(), noise.float(), reduction="mean")
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def weights(self) -> dict[str, Tensor]:
        """The trained tensors themselves, under the published names."""
        named = {f"image_proj.{name}": value for name, value in self.adapter.image_proj_model.state_dict().items()}
        modules = self.adapter.adapter_modules.state_dict()
        return named | {f"ip_adapter.{name}": value for name, value in modules.items()}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Start from an adapter under the published names."""
        own = self.weights()
        assert own.keys() == weights.keys(), "not an adapter of this base and encoder"
        for name, value in own.items():
            value.copy_(weights[name])


def official_train(
    settings: Settings, output: Path, steps: int, loop_class: type[OfficialLoop] = OfficialLoop
) -> list[float]:
    """Train for some steps and write the adapter in published form (float32 safetensors); the loss of each step."""
    loop = loop_class(settings)
    losses = [loop.step() for _ in range(steps)]
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().cpu().contiguous() for name, value in loop.weights().items()}, output)
    return losses


def tokenize(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    tokens: Tensor = tokenizer(
        list(captions),
        max_length=tokenizer.model_max_length,
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return tokens


def _frozen(model_class: Any, folder: Path, part: str | None = None) -> Any:
    name = {} if part is None else {"subfolder": part}
    return model_class.from_pretrained(folder, torch_dtype=torch.float32, **name).requires_grad_(False)


def _autoencoder_class(base: Path) -> Any:
    """The tutorial's, or the tiny one of the demo's base."""
    config = json.loads((base / "vae" / "config.json").read_text(encoding="utf-8"))
    return {model.__name__: model for model in (AutoencoderKL, AutoencoderTiny)}[config["_class_name"]]


def heads_of(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    out = functional.scaled_dot_product_attention(query, heads_of(key, heads), heads_of(value, heads))
    return out.transpose(1, 2).flatten(2)


def _finish(attn: Any, out: Tensor) -> Tensor:
    linear, dropout = attn.to_out
    result: Tensor = dropout(linear(out))
    return result
