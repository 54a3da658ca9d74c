"""SD3.5: text, times, loss, gradients and pictures are those of diffusers with the same adapter file."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import Tensor, nn

from ipadapter_core.errors import MismatchError
from ipadapter_core.network.adapter import save_adapter
from ipadapter_trainer.backbones.sd3 import SD3Backbone
from ipadapter_trainer.config import AdapterConfig, BaseModelConfig, EncoderConfig, ObjectiveConfig
from ipadapter_trainer.models.image_encoder import ImageEncoder, load_image_encoder
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.models.network import TrainableAdapter, new_adapter
from ipadapter_trainer.objective import Condition, Objective
from ipadapter_trainer.readers.pictures import FEATURES, PictureReader
from ipadapter_trainer.watch.sampling import Sampler, SampleSettings, encode_prompt, encode_reference, sample_grid
from support.pretend_device import pretend_device
from support.tiny_sd3_base import ENCODERS, sd3_transformer, write_sd3_base
from support.trained import reference_picture

CPU = torch.device("cpu")
KINDS: dict[str, dict[str, Any]] = {"SD3.5-Large": {}, "SD3.5-Medium": {"dual": (0,)}, "SD3": {"qk_norm": None}}
CAPTIONS = ["a cat", "no dogs, 3 of them"]
SMALL = AdapterConfig(kind="plus", tokens=4, resampler_dim=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sd3_base(tmp_path_factory.mktemp("sd3") / "base")


@pytest.fixture(scope="module")
def encoder(encoder_folder: Callable[[str], Path]) -> ImageEncoder:
    return load_image_encoder(EncoderConfig(model=str(encoder_folder("siglip")), precision="fp32"), "plus", CPU)


def opened(folder: Path, **asked: Any) -> SD3Backbone:
    base = load_base(BaseModelConfig(model=str(folder), precision="fp32"), CPU, **asked)
    assert isinstance(base, SD3Backbone)
    return base


def network_of(base: SD3Backbone, encoder: ImageEncoder, config: AdapterConfig = SMALL) -> TrainableAdapter:
    """With values that show: none at its start."""
    network = new_adapter(config, base, encoder)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network


def with_adapter(base: SD3Backbone, network: TrainableAdapter, folder: Path) -> Any:
    """A pipeline of diffusers' own with the adapter, loaded by its own loader from a file."""
    save_adapter(network.adapter, folder / "adapter.safetensors")
    pipeline = type(base.pipeline).from_pretrained(base.name)
    pipeline.load_ip_adapter(
        str(folder), subfolder="", weight_name="adapter.safetensors", image_encoder_folder=None, low_cpu_mem_usage=False
    )
    pipeline.set_ip_adapter_scale(1.0)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("absent", [(), ("text_encoder_3",)], ids=["all encoders", "no T5"])
def test_text_is_that_of_diffusers(tmp_path: Path, absent: tuple[str, ...]) -> None:
    base = opened(write_sd3_base(tmp_path, absent=absent))
    text = base.encode_text(CAPTIONS)
    expected = base.pipeline.encode_prompt(CAPTIONS, None, None, do_classifier_free_guidance=False)
    assert torch.equal(text["text"], expected[0])
    assert torch.equal(text["pooled"], expected[2])


@pytest.mark.parametrize("kept", ENCODERS)
def test_what_there_is_of_text_encoders_is_used(folder: Path, tmp_path: Path, kept: str) -> None:
    """Each in its own place, the others as zeros; and without the transformer, as a cache is filled."""
    absent = tuple(name for name in ENCODERS if name != kept)
    base = opened(write_sd3_base(tmp_path, absent=absent), only=frozenset({"text"}))
    alone, whole = base.encode_text(CAPTIONS), opened(folder).encode_text(CAPTIONS)
    for part in ("text", "pooled"):
        is_there = alone[part] != 0
        assert is_there.any() == (kept != "text_encoder_3" or part == "text")
        assert torch.equal(alone[part], torch.where(is_there, whole[part], torch.zeros(())))
    assert (alone["text"] != 0).sum() < (whole["text"] != 0).sum()


@pytest.mark.parametrize("absent", ENCODERS)
def test_text_is_encoded_where_its_encoders_wait(tmp_path: Path, absent: str) -> None:
    """On the host, where a cache leaves them; what they lack is there too."""
    folder = write_sd3_base(tmp_path, absent=(absent,))
    config = BaseModelConfig(model=str(folder), precision="fp32")
    wanted = opened(folder).encode_text(CAPTIONS)
    with pretend_device("cuda") as cuda:
        given = load_base(config, cuda, waiting=frozenset({"text"})).encode_text(CAPTIONS)
    assert given.keys() == wanted.keys()
    assert all(torch.equal(given[part], wanted[part]) for part in wanted)


def test_times_and_noisy_latents_are_those_of_the_scheduler(folder: Path) -> None:
    base = opened(folder)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(base.pipeline.scheduler.config)
    places = torch.linspace(1, scheduler.config.num_train_timesteps, 1000).flip(0) / 1000
    shifted = torch.tensor([base.time_shift.of(float(place), 8, 8) for place in places])
    torch.testing.assert_close(shifted, scheduler.sigmas[:1000], rtol=0, atol=1e-6)
    latents, noise = torch.randn(2, 3, 16, 8, 8, generator=torch.Generator().manual_seed(2))
    timesteps = scheduler.timesteps[[10, 400, 900]]
    noisy = base.noisy(latents, noise, timesteps / 1000)
    torch.testing.assert_close(noisy, scheduler.scale_noise(latents, timesteps, noise))
    step = scheduler.step(base.target(latents, noise, timesteps[:1]), scheduler.timesteps[0], noise).prev_sample
    torch.testing.assert_close(step, base.noisy(latents, noise, scheduler.sigmas[1:2]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_without_an_image_the_model_computes_what_it_did(tmp_path: Path, kind: str) -> None:
    base = opened(write_sd3_base(tmp_path, transformer=sd3_transformer(**KINDS[kind])))
    given = model_input()
    before = base.model(**given).sample
    base.install()
    torch.testing.assert_close(base.model(**given).sample, before, rtol=1e-5, atol=1e-6)


def model_input() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        "hidden_states": torch.randn(2, 16, 8, 8, generator=generator),
        "encoder_hidden_states": torch.randn(2, 7, 24, generator=generator),
        "pooled_projections": torch.randn(2, 12, generator=generator),
        "timestep": torch.tensor([130.0, 870.0]),
    }


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_loss_and_gradients_are_those_of_diffusers(
    folder: Path, encoder: ImageEncoder, tmp_path: Path, checkpointing: bool
) -> None:
    """Each sample at a time of its own, the last one without its image."""
    base = opened(folder)
    network = network_of(base, encoder)
    pipeline = with_adapter(base, network, tmp_path)
    base.install()
    if checkpointing:
        base.model.enable_gradient_checkpointing()
    generator = torch.Generator().manual_seed(3)
    latents, noise = torch.randn(2, 3, 16, 8, 8, generator=generator)
    features = torch.randn(3, 5, encoder.width, generator=generator)
    times, dropped = torch.tensor([0.13, 0.5, 0.97]), torch.tensor([False, False, True])
    text = base.encode_text(["a", "b", "c"])
    reader = PictureReader(encoder)
    objective = Objective(ObjectiveConfig(), base, {FEATURES: torch.zeros(1, 5, encoder.width)}, reader)
    shown = objective.drop({FEATURES: features}, dropped)
    condition = Condition(latents, text, torch.zeros(3, 6), shown)
    loss = objective.losses(network, condition, noise, times).mean()
    loss.backward()

    transformer: SD3Transformer2DModel = pipeline.transformer
    transformer.requires_grad_(True)
    sigmas = times[:, None, None, None]
    answer = transformer(
        (1 - sigmas) * latents + sigmas * noise,
        encoder_hidden_states=text["text"],
        pooled_projections=text["pooled"],
        timestep=1000 * times,
        joint_attention_kwargs={"ip_adapter_image_embeds": features * ~dropped[:, None, None]},
    ).sample
    expected = (answer - (noise - latents)).square().mean()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for site, block in enumerate(transformer.transformer_blocks):
        processor = block.attn.processor
        assert_same_gradients(gradients(network.adapter.site(site)), gradients(processor))
    renamed = transformer._convert_ip_adapter_image_proj_to_diffusers(
        gradients(network.adapter.image_proj), low_cpu_mem_usage=False
    )
    assert_same_gradients(renamed.state_dict(), gradients(transformer.image_proj))
    assert all(parameter.grad is None for parameter in base.model.parameters()), "the model is frozen"


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def assert_same_gradients(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = gradient.abs().max()
        assert scale > 0, name
        torch.testing.assert_close(actual[name] / scale, gradient / scale, rtol=0, atol=1e-4, msg=name)


def test_pictures_are_those_of_diffusers(folder: Path, encoder: ImageEncoder, tmp_path: Path) -> None:
    """The adapter runs at every step, on both sides of guidance, at every strength."""
    base = opened(folder)
    network = network_of(base, encoder)
    pipeline = with_adapter(base, network, tmp_path)
    base.install()
    reader = PictureReader(encoder)
    settings = SampleSettings(strengths=(0.0, 0.6, 1.0), steps=3, guidance=3.0, size=(64, 48), seed=7)
    sampler = Sampler(base, settings, encode_prompt(base, "bad"))
    reference = encode_reference(reference_picture(), "it", base=base, reader=reader, prompt="a cat")
    no_image = reader.no_image(network.spec.negative)
    grid = sample_grid(sampler, network, no_image, [reference])
    pictures = [np.asarray(picture, dtype=np.float64) / 255 for picture in grid.rows[0]]
    for strength, picture in zip(settings.strengths, pictures, strict=True):
        pipeline.set_ip_adapter_scale(strength)
        drawn = pipeline(
            "a cat",
            negative_prompt="bad",
            ip_adapter_image_embeds=torch.cat((no_image[FEATURES], reference.features[FEATURES])),
            latents=sampler.noise(0, 0),
            width=settings.size[0],
            height=settings.size[1],
            sigmas=torch.linspace(1, 1 / settings.steps, settings.steps).tolist(),
            guidance_scale=settings.guidance,
            output_type="np",
        ).images[0]
        assert np.abs(picture - drawn).max() < 0.5 / 255 + 1e-4
    assert np.abs(pictures[0] - pictures[2]).max() > 4 / 255, "the adapter shows"
    assert np.abs(pictures[1] - pictures[2]).max() > 1 / 255, "and so does its strength"


def test_norms_start_as_the_model_has_them(folder: Path, encoder: ImageEncoder) -> None:
    base = opened(folder)
    network, drawn = (
        new_adapter(SMALL.model_copy(update={"init": init}), base, encoder) for init in ("text", "random")
    )
    for index, block in enumerate(base.model.transformer_blocks):
        site, plain = network.adapter.site(index), drawn.adapter.site(index)
        assert torch.equal(site.norm_q.weight, block.attn.norm_q.weight)
        assert torch.equal(site.norm_k.weight, block.attn.norm_k.weight)
        assert torch.equal(site.norm_ip_k.weight, block.attn.norm_k.weight)
        assert torch.equal(plain.norm_q.weight, torch.ones(site.norm_q.weight.shape))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"kind": "base"}, 'adapter.kind = "base".*Expected: adapter.kind = "plus"'),
        ({"kind": "full"}, 'adapter.kind = "full"'),
    ],
)
def test_what_this_family_has_not_is_refused(
    folder: Path, encoder: ImageEncoder, asked: dict[str, str], message: str
) -> None:
    with pytest.raises(MismatchError, match=message):
        new_adapter(AdapterConfig(**asked), opened(folder), encoder)  # type: ignore[arg-type]


def test_a_model_with_layer_norms_is_refused(tmp_path: Path) -> None:
    transformer = sd3_transformer(qk_norm="layer_norm")
    with pytest.raises(MismatchError, match="layer norms"):
        _ = opened(write_sd3_base(tmp_path, transformer=transformer)).sites
