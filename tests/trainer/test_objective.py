"""One step's loss and gradients equal those of diffusers' own IP-Adapter, written out plainly."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor
from torch.nn import functional

from ipadapter_core.file.spec import Negative
from ipadapter_trainer.backbones.unet import UNetBackbone
from ipadapter_trainer.batch import Batch
from ipadapter_trainer.config import AdapterConfig, BaseModelConfig, EncoderConfig, ObjectiveConfig
from ipadapter_trainer.draws import draw
from ipadapter_trainer.models.image_encoder import ImageEncoder, load_image_encoder
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.models.network import TrainableAdapter, new_adapter
from ipadapter_trainer.objective import Objective
from ipadapter_trainer.readers.pictures import PictureReader

CPU = torch.device("cpu")
TIME_IDS = torch.tensor([[70.0, 64.0, 3.0, 0.0, 64.0, 64.0], [64.0, 90.0, 0.0, 13.0, 64.0, 64.0]])
PLUS = AdapterConfig(kind="plus", tokens=5, resampler_dim=64)  # depth 4 and heads of 64: diffusers reads no others
CAPTIONS = ("a red cat", "")


def parts(
    folder: Path, encoder_folder: Path, adapter: AdapterConfig
) -> tuple[UNetBackbone, ImageEncoder, TrainableAdapter]:
    base = load_base(BaseModelConfig(model=str(folder), precision="fp32"), CPU)
    encoder = load_image_encoder(EncoderConfig(model=str(encoder_folder), precision="fp32"), adapter.kind, CPU)
    network = new_adapter(adapter, base, encoder)
    base.install()
    return base, encoder, network


def objective_for(
    config: ObjectiveConfig, base: UNetBackbone, encoder: ImageEncoder, network: TrainableAdapter
) -> Objective:
    reader = PictureReader(encoder)
    return Objective(config, base, reader.no_image(network.spec.negative), reader)


def batch_of(encoder: ImageEncoder, config: ObjectiveConfig, **changes: Any) -> Batch:
    generator = torch.Generator().manual_seed(5)
    draws = [draw(3, position, (4, 8, 8), config) for position in range(2)]
    return Batch(
        **{
            "positions": (0, 1),
            "keys": ("a", "b"),
            "captions": CAPTIONS,
            "drop_image": torch.tensor([False, True]),
            "latent_noise": torch.stack([one.latent_noise for one in draws]),
            "noise": torch.stack([one.noise for one in draws]),
            "times": torch.tensor([0.12, 0.81]),
            "sizes": TIME_IDS,
            "pixels": torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1,
            "references": {"pixels": encoder.format.pixels(torch.rand(2, 40, 50, 3, generator=generator))},
            **changes,
        }
    )


def reference_loss(
    folder: Path, encoder: ImageEncoder, network: TrainableAdapter, batch: Batch, *, is_sdxl: bool, is_v: bool
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """The training step of the paper with diffusers' pipeline parts and IP-Adapter, and gradients by our names."""
    pipeline_class = StableDiffusionXLPipeline if is_sdxl else StableDiffusionPipeline
    pipeline = pipeline_class.from_pretrained(folder, torch_dtype=torch.float32)
    files: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, value in network.adapter.state_dict().items():
        part, _, rest = name.partition(".")
        files[part][rest] = value.detach().clone()
    unet = pipeline.unet.requires_grad_(False)
    unet._load_ip_adapter_weights([files], low_cpu_mem_usage=False)
    trained = {}
    for site, name in enumerate(name for name in unet.attn_processors if name.endswith("attn2.processor")):
        processor = unet.attn_processors[name]
        trained[f"ip_adapter.{2 * site + 1}.to_k_ip.weight"] = processor.to_k_ip[0].weight.requires_grad_(True)
        trained[f"ip_adapter.{2 * site + 1}.to_v_ip.weight"] = processor.to_v_ip[0].weight.requires_grad_(True)
    projection = unet.encoder_hid_proj.image_projection_layers[0]
    own = {"image_proj.proj.weight": "image_embeds", "image_proj.norm.weight": "norm"}
    if network.spec.resampler:
        own = {f"image_proj.{name}.weight": name for name in ("proj_in", "proj_out", "norm_out")}
    trained |= {name: getattr(projection, part).weight.requires_grad_(True) for name, part in own.items()}

    assert batch.pixels is not None
    assert batch.references is not None
    posterior = pipeline.vae.encode(batch.pixels).latent_dist
    latents = (posterior.mean + posterior.std * batch.latent_noise) * pipeline.vae.config.scaling_factor
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    timesteps = torch.tensor([120, 810])
    noisy = schedule.add_noise(latents, batch.noise, timesteps)
    kept = batch.references["pixels"].clone()
    if network.spec.negative is Negative.ZERO_PIXELS:
        kept[batch.drop_image] = 0
        features = encoder.vision.model(kept, output_hidden_states=True).hidden_states[-2]
    else:
        features = encoder.vision.model(kept).image_embeds * ~batch.drop_image[:, None]
    if is_sdxl:
        text, _, pooled, _ = pipeline.encode_prompt(list(CAPTIONS), do_classifier_free_guidance=False, device=CPU)
        added = {"text_embeds": pooled, "time_ids": TIME_IDS}
    else:
        text, _ = pipeline.encode_prompt(list(CAPTIONS), CPU, 1, do_classifier_free_guidance=False)
        added = {}
    added["image_embeds"] = [features[:, None]]
    prediction = unet(noisy, timesteps, text.detach(), added_cond_kwargs=added).sample
    target = schedule.get_velocity(latents, batch.noise, timesteps) if is_v else batch.noise
    loss = functional.mse_loss(prediction, target)
    loss.backward()
    return loss, {name: value.grad for name, value in trained.items()}


@pytest.mark.parametrize("adapter", [AdapterConfig(), PLUS], ids=["base", "plus"])
@pytest.mark.parametrize(
    ("layout", "prediction_type"), [("sd15", "epsilon"), ("sd15", "v_prediction"), ("sdxl", "epsilon")]
)
def test_loss_and_gradients_are_those_of_diffusers(
    base_folder: Callable[..., Path],
    encoder_folder: Callable[[str], Path],
    adapter: AdapterConfig,
    layout: str,
    prediction_type: str,
) -> None:
    folder = base_folder(layout, prediction_type)
    base, encoder, network = parts(folder, encoder_folder("clip"), adapter)
    batch = batch_of(encoder, ObjectiveConfig())
    loss = objective_for(ObjectiveConfig(), base, encoder, network).loss(network, batch)
    loss.backward()
    gradients = {name.removeprefix("adapter."): value.grad for name, value in network.named_parameters()}
    wanted, wanted_gradients = reference_loss(
        folder, encoder, network, batch, is_sdxl=layout == "sdxl", is_v=prediction_type == "v_prediction"
    )
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=0)
    for name, gradient in wanted_gradients.items():
        assert gradient is not None
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


def objective_of(
    base_folder: Callable[..., Path], encoder_folder: Callable[[str], Path], prediction_type: str, **settings: Any
) -> tuple[Objective, TrainableAdapter, Batch]:
    base, encoder, network = parts(base_folder("sd15", prediction_type), encoder_folder("clip"), AdapterConfig())
    config = ObjectiveConfig(**settings)
    objective = objective_for(config, base, encoder, network)
    return objective, network, batch_of(encoder, config)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weights_each_sample(
    base_folder: Callable[..., Path], encoder_folder: Callable[[str], Path], prediction_type: str
) -> None:
    objective, network, batch = objective_of(base_folder, encoder_folder, prediction_type, min_snr_gamma=5.0)
    plain = Objective(ObjectiveConfig(), objective.base, objective.no_image, objective.reader)
    condition = objective.condition(batch)
    ratio = objective.losses(network, condition, batch.noise, batch.times) / plain.losses(
        network, condition, batch.noise, batch.times
    )
    alphas = objective.base.schedule.alphas_cumprod[[120, 810]]
    snr = alphas / (1 - alphas)
    wanted = snr.clamp(max=5) / (snr + 1 if prediction_type == "v_prediction" else snr)
    assert wanted[0] < 1
    torch.testing.assert_close(ratio, wanted)


def test_masked_loss_counts_white_only(base_folder: Callable[..., Path], encoder_folder: Callable[[str], Path]) -> None:
    objective, network, batch = objective_of(base_folder, encoder_folder, "epsilon")
    condition = objective.condition(batch)
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, :, :4] = 1
    kv = network(condition.features)
    noisy = objective.base.noisy(condition.latents, batch.noise, batch.times)
    error = (objective.predict(kv, condition, noisy, batch.times) - batch.noise).square()
    masked = objective.losses(network, condition, batch.noise, batch.times, mask)
    torch.testing.assert_close(masked, error[..., :4].mean(dim=(1, 2, 3)))


def test_terminal_snr_is_zero_and_needs_v_prediction(base_folder: Callable[..., Path]) -> None:
    def base(prediction_type: str) -> UNetBackbone:
        config = BaseModelConfig(model=str(base_folder("sd15", prediction_type)), precision="fp32")
        return load_base(config, CPU, only=frozenset({"model"}))

    assert base("v_prediction").with_terminal_snr().schedule.alphas_cumprod[-1] < 1e-6
    with pytest.raises(ValueError, match=r"which predicts epsilon.*v_prediction model"):
        base("epsilon").with_terminal_snr()


def test_cached_tensors_give_the_same_loss(
    base_folder: Callable[..., Path], encoder_folder: Callable[[str], Path]
) -> None:
    objective, network, batch = objective_of(base_folder, encoder_folder, "epsilon")
    base, reader = objective.base, objective.reader
    assert reader is not None
    assert batch.pixels is not None
    assert batch.references is not None
    mean, std = base.encode_pixels(batch.pixels)
    cached = batch_of(
        reader.encoder,
        ObjectiveConfig(),
        pixels=None,
        references=None,
        latent_mean=mean,
        latent_std=std,
        features=reader.read(batch.references),
        text=base.encode_text(CAPTIONS),
    )
    assert objective.loss(network, cached).item() == objective.loss(network, batch).item()


def error_of(objective: Objective, network: TrainableAdapter, batch: Batch) -> Tensor:
    """What the model says less what it should say, both predicting noise."""
    condition = objective.condition(batch)
    noisy = objective.base.noisy(condition.latents, batch.noise, batch.times)
    return objective.predict(network(condition.features), condition, noisy, batch.times) - batch.noise


@pytest.mark.parametrize("schedule", ["constant", "exponential"])
def test_huber_is_square_for_small_errors_and_straight_for_large_ones(
    base_folder: Callable[..., Path], encoder_folder: Callable[[str], Path], schedule: str
) -> None:
    objective, network, batch = objective_of(
        base_folder, encoder_folder, "epsilon", huber_c=0.1, huber_schedule=schedule
    )
    given = objective.losses(network, objective.condition(batch), batch.noise, batch.times)
    error = error_of(objective, network, batch).double()
    for sample, timestep in enumerate((120, 810)):
        c = 0.1 if schedule == "constant" else math.exp(math.log(0.1) * timestep / 1000)
        values = [2 * c * (math.hypot(value, c) - c) for value in error[sample].flatten().tolist()]
        assert given[sample].item() == pytest.approx(sum(values) / len(values), rel=1e-5)


def test_huber_keeps_the_digits_of_small_errors(
    base_folder: Callable[..., Path], encoder_folder: Callable[[str], Path]
) -> None:
    objective, network, batch = objective_of(base_folder, encoder_folder, "epsilon", huber_c=1e4)
    given = objective.losses(network, objective.condition(batch), batch.noise, batch.times)
    torch.testing.assert_close(given, error_of(objective, network, batch).square().mean(dim=(1, 2, 3)))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_debiased_weights_the_same_error_alike_whatever_is_predicted(
    base_folder: Callable[..., Path], encoder_folder: Callable[[str], Path], prediction_type: str
) -> None:
    objective, network, batch = objective_of(base_folder, encoder_folder, prediction_type, debiased=True)
    plain = Objective(ObjectiveConfig(), objective.base, objective.no_image, objective.reader)
    condition = objective.condition(batch)
    ratio = objective.losses(network, condition, batch.noise, batch.times) / plain.losses(
        network, condition, batch.noise, batch.times
    )
    alphas = objective.base.schedule.alphas_cumprod[[120, 810]]
    wanted = ((1 - alphas) / alphas).sqrt()  # of an error of noise
    if prediction_type == "v_prediction":
        wanted = wanted * alphas  # which is sqrt(alpha) times one of v
    torch.testing.assert_close(ratio, wanted)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_perturbation_is_seen_and_not_asked_for(
    base_folder: Callable[..., Path], encoder_folder: Callable[[str], Path], prediction_type: str
) -> None:
    objective, network, batch = objective_of(base_folder, encoder_folder, prediction_type, input_perturbation=0.5)
    extra = 0.5 * torch.randn(batch.noise.shape, generator=torch.Generator().manual_seed(2))
    condition = objective.condition(batch)
    alphas = objective.base.schedule.alphas_cumprod[[120, 810]][:, None, None, None]
    seen = alphas.sqrt() * condition.latents + (1 - alphas).sqrt() * (batch.noise + extra)
    said = objective.predict(network(condition.features), condition, seen, batch.times)
    v = alphas.sqrt() * batch.noise - (1 - alphas).sqrt() * condition.latents
    wanted = (said - (v if prediction_type == "v_prediction" else batch.noise)).square().mean()
    torch.testing.assert_close(objective.loss(network, replace(batch, perturbation=extra)), wanted)
    assert not torch.isclose(objective.loss(network, batch), wanted)


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"debiased": True, "min_snr_gamma": 5.0}, "debiased and objective.min_snr_gamma"),
    ({"pyramid_noise": 0.9, "noise_offset": 0.05}, "pyramid_noise and objective.noise_offset"),
    ({"huber_schedule": "exponential"}, "huber_schedule needs objective.huber_c"),
    ({"timestep_logit_mean": 0.5}, "timestep_logit_mean"),
    ({"timestep_logit_std": 0.5, "timestep_sampling": "later"}, "timestep_logit_mean"),
]


@pytest.mark.parametrize(("settings", "message"), CONTRADICTIONS)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**settings)
