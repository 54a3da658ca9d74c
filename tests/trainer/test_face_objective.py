"""One step of a face adapter: loss and gradients equal those of diffusers' IP-Adapter and FaceID projections, and of
weights that a LoRA has changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ipadapter_trainer.batch import Batch
from ipadapter_trainer.config import AdapterConfig, BaseModelConfig, EncoderConfig, ObjectiveConfig
from ipadapter_trainer.draws import draw
from ipadapter_trainer.models.face_network import face_read
from ipadapter_trainer.models.image_encoder import load_image_encoder
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.models.network import TrainableAdapter, new_adapter
from ipadapter_trainer.objective import Objective
from ipadapter_trainer.readers.faces import FaceReader, open_face_reader
from support.faces import FACE_KINDS, READS_PICTURES
from support.tiny_unet import CONTEXT_DIM

CPU = torch.device("cpu")
SIZES = torch.tensor([[70.0, 64.0, 3.0, 0.0, 64.0, 64.0], [64.0, 90.0, 0.0, 13.0, 64.0, 64.0]])
TIMES = torch.tensor([0.12, 0.81])
CASES = [("sd15", kind) for kind in FACE_KINDS] + [("sdxl", "faceid"), ("sdxl", "faceid_plus_v2")]


class Raised(nn.Module):
    """W + up · down."""

    def __init__(self, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(down.clone()), nn.Parameter(up.clone())

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def network_of(kind: str, base: Any, reader: FaceReader) -> TrainableAdapter:
    network = new_adapter(AdapterConfig(**FACE_KINDS[kind]), base, reader.encoder)
    if network.lora is not None:  # which begins as nothing
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in network.lora.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network


def batch_of(reader: FaceReader, faces: int) -> Batch:
    generator = torch.Generator().manual_seed(5)
    draws = [draw(3, position, (4, 8, 8), ObjectiveConfig()) for position in range(2)]
    shape = (2,) if faces == 1 else (2, faces)
    identity = nn.functional.normalize(torch.randn(*shape, 512, generator=generator), dim=-1)
    features = {"identity": identity}
    if reader.encoder is not None:
        features["features"] = torch.randn(*shape, 5, reader.encoder.width, generator=generator)
    return Batch(
        positions=(0, 1),
        keys=("a", "b"),
        captions=("a red cat", ""),
        drop_image=torch.tensor([False, True]),
        latent_noise=torch.stack([one.latent_noise for one in draws]),
        noise=torch.stack([one.noise for one in draws]),
        times=TIMES,
        sizes=SIZES,
        pixels=torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1,
        features=features,
    )


def by_diffusers(
    folder: Path, network: TrainableAdapter, reader: FaceReader, batch: Batch, *, is_sdxl: bool
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """The same step with diffusers' classes; "no face" is zeros, and of the encoder what it gives for gray pixels."""
    pipeline_class = StableDiffusionXLPipeline if is_sdxl else StableDiffusionPipeline
    pipeline = pipeline_class.from_pretrained(folder, torch_dtype=torch.float32)
    files: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, value in network.adapter.state_dict().items():
        part, _, rest = name.partition(".")
        files[part][rest] = value.detach().clone()
    unet = pipeline.unet.requires_grad_(False)
    layers = [unet.get_submodule(name.removesuffix(".processor")) for name in unet.attn_processors]
    unet._load_ip_adapter_weights([files], low_cpu_mem_usage=False)
    trained: dict[str, Tensor] = {}
    for site, layer in enumerate(layers[1::2]):
        for side in ("k", "v"):
            weight = getattr(layer.processor, f"to_{side}_ip")[0].weight.requires_grad_(True)
            trained[f"ip_adapter.{2 * site + 1}.to_{side}_ip.weight"] = weight
    lora = {} if network.lora is None else network.lora.state_dict()
    for number, layer in enumerate(layers if lora else ()):
        for part, linear in (("q", layer.to_q), ("k", layer.to_k), ("v", layer.to_v), ("out", layer.to_out[0])):
            names = [f"ip_adapter.{number}.to_{part}_lora.{side}.weight" for side in ("down", "up")]
            raised = Raised(*(lora[name] for name in names))
            parametrize.register_parametrization(linear, "weight", raised)
            trained |= dict(zip(names, (raised.down, raised.up), strict=True))
    projection = unet.encoder_hid_proj.image_projection_layers[0]
    trained["image_proj.norm.weight"] = projection.norm.weight.requires_grad_(True)

    assert batch.pixels is not None
    assert batch.features is not None
    posterior = pipeline.vae.encode(batch.pixels).latent_dist
    latents = (posterior.mean + posterior.std * batch.latent_noise) * pipeline.vae.config.scaling_factor
    schedule, steps = DDPMScheduler.from_config(pipeline.scheduler.config), torch.tensor([120, 810])
    noisy = schedule.add_noise(latents, batch.noise, steps)
    identity = batch.features["identity"].clone()
    identity[1] = 0
    identity = identity[:, None] if identity.ndim == 2 else identity
    if reader.encoder is not None:
        assert network.spec.face is not None
        pictures = batch.features["features"].clone()
        pictures[1] = reader.encoder.features(torch.zeros(1, 3, 28, 28))[0]
        projection.clip_embeds, projection.shortcut = pictures[None], bool(network.spec.face.has_shortcut)
        trained["image_proj.perceiver_resampler.proj_in.weight"] = projection.proj_in.weight.requires_grad_(True)
    prompt = pipeline.encode_prompt(
        list(batch.captions), device=CPU, do_classifier_free_guidance=False, num_images_per_prompt=1
    )
    added = {"image_embeds": [identity]}
    if is_sdxl:
        added |= {"text_embeds": prompt[2], "time_ids": SIZES}
    answer = unet(noisy, steps, prompt[0], added_cond_kwargs=added).sample
    loss = (answer - batch.noise).square().mean()
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in trained.items()}


@pytest.mark.parametrize(("layout", "kind"), CASES, ids=["-".join(case) for case in CASES])
def test_loss_and_gradients_equal_diffusers(
    base_folder: Callable[..., Path], encoder_folder: Callable[[str], Path], layout: str, kind: str
) -> None:
    base = load_base(BaseModelConfig(model=str(base_folder(layout)), precision="fp32"), CPU)
    config = EncoderConfig(model=str(encoder_folder("clip")), precision="fp32")
    encoder = load_image_encoder(config, kind, CPU) if kind in READS_PICTURES else None
    reader = open_face_reader(None, face_read(CONTEXT_DIM), encoder, CPU)
    network = network_of(kind, base, reader)
    base.install()
    batch = batch_of(reader, faces=3 if kind == "portrait" else 1)
    objective = Objective(ObjectiveConfig(), base, reader.no_image(network.spec.negative), reader)
    loss = objective.loss(network, batch)
    loss.backward()
    found = {name.partition(".")[2]: weight.grad for name, weight in network.named_parameters()}
    expected, gradients = by_diffusers(base_folder(layout), network, reader, batch, is_sdxl=layout == "sdxl")
    assert abs(loss.item() - expected.item()) < 1e-5 * expected.item()
    assert sum("lora" in name for name in gradients) == (0 if kind == "portrait" else 8 * 2 * network.spec.num_sites)
    for name, gradient in gradients.items():
        assert gradient is not None
        assert found[name] is not None, name
        assert (found[name] - gradient).norm() < 2e-3 * gradient.norm() + 1e-9, name
