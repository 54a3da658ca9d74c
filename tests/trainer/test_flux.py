"""FLUX.1: one step against diffusers' own IP-Adapter processors, its times and its drawing against diffusers' pipeline."""

# B samples, C latent channels, h w latent size, N image tokens

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from ipadapter_core.errors import MismatchError
from ipadapter_core.file.container import read_header, read_tensors, write_safetensors
from ipadapter_core.file.detect import detect
from ipadapter_core.file.names import published_name
from ipadapter_core.file.spec import Negative, Projection
from ipadapter_core.network.adapter import load_adapter
from ipadapter_trainer.backbones.flux import FluxBackbone
from ipadapter_trainer.backbones.image_prompt import ImagePrompt
from ipadapter_trainer.config import AdapterConfig, BaseModelConfig, EncoderConfig, ObjectiveConfig
from ipadapter_trainer.convert.conversion import convert_file
from ipadapter_trainer.draws import draw
from ipadapter_trainer.files.export import export_adapter
from ipadapter_trainer.files.facts import ExportFacts, Preprocess
from ipadapter_trainer.files.inspection import inspect_path
from ipadapter_trainer.models.image_encoder import ImageEncoder, load_image_encoder
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.models.network import TrainableAdapter, new_adapter
from ipadapter_trainer.objective import Condition, Objective
from support.published_transformers import xlabs_flux
from support.tiny_flux import DOUBLES, LATENT_CHANNELS, WIDTH, diffusers_flux
from support.tiny_flux_base import write_flux_base
from support.training import make_config

CPU = torch.device("cpu")
SIDE = 8  # of the latent
CAPTIONS = ["a red cat", ""]
PLUS = {"kind": "plus", "tokens": 6, "resampler_dim": 32, "resampler_depth": 1, "resampler_head_dim": 16}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flux_base(tmp_path_factory.mktemp("flux") / "base")


@pytest.fixture(scope="module")
def schnell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flux_base(tmp_path_factory.mktemp("schnell") / "base", guidance=False)


@pytest.fixture(scope="module")
def encoder(encoder_folder: Callable[[str], Path]) -> ImageEncoder:
    return load_image_encoder(EncoderConfig(model=str(encoder_folder("clip")), precision="fp32"), "base", CPU)


def open_base(folder: Path, **settings: Any) -> FluxBackbone:
    base = load_base(BaseModelConfig(model=str(folder), precision="fp32", **settings), CPU)
    assert isinstance(base, FluxBackbone)
    return base


def trained(base: FluxBackbone, encoder: ImageEncoder, **adapter: Any) -> TrainableAdapter:
    """A network whose values are not zero any more."""
    torch.manual_seed(3)
    network = new_adapter(AdapterConfig(**adapter), base, encoder)
    for index in range(DOUBLES):
        for parameter in network.adapter.site(index).parameters():
            parameter.data.copy_(0.1 * torch.randn(parameter.shape))
    return network


def noise(seed: int, side: int = SIDE, count: int = 2) -> Tensor:
    return torch.randn(count, LATENT_CHANNELS, side, side, generator=torch.Generator().manual_seed(seed))


def loss_of(base: FluxBackbone, network: TrainableAdapter, features: Tensor, times: Tensor) -> Tensor:
    objective = Objective(ObjectiveConfig(), base, {"features": torch.zeros(1, features.shape[-1])})
    condition = Condition(noise(1), base.encode_text(CAPTIONS), torch.zeros(2, 6), {"features": features})
    return objective.losses(network, condition, noise(2), times).mean()


@pytest.mark.parametrize("tokens", [4, 16])
def test_loss_and_gradients_equal_diffusers_own_processors(
    folder: Path, encoder: ImageEncoder, tmp_path: Path, tokens: int
) -> None:
    base = open_base(folder)
    network = trained(base, encoder, tokens=tokens)
    features, times = torch.randn(2, encoder.width), torch.tensor([0.3, 0.8])
    base.install()
    ours = loss_of(base, network, features, times)
    ours.backward()
    pipeline = FluxPipeline.from_pretrained(folder)
    path = tmp_path / "adapter.safetensors"
    state = network.adapter.state_dict()
    write_safetensors(path, {published_name(name, network.spec.layout): tensor for name, tensor in state.items()}, {})
    pipeline.load_ip_adapter(tmp_path, weight_name=path.name, image_encoder_pretrained_model_name_or_path=None)
    transformer = pipeline.transformer.requires_grad_(False)
    processors = [block.attn.processor.requires_grad_(True) for block in transformer.transformer_blocks]
    projection = transformer.encoder_hid_proj.image_projection_layers[0].requires_grad_(True)
    text, pooled, text_ids = pipeline.encode_prompt(
        CAPTIONS, max_sequence_length=base.texts[1].tokenizer.model_max_length
    )
    share = times[:, None, None, None]
    noisy = (1 - share) * noise(1) + share * noise(2)
    packed = FluxPipeline._pack_latents(noisy, 2, LATENT_CHANNELS, SIDE, SIDE)
    answer = transformer(
        packed,
        text,
        pooled,
        times,
        img_ids=FluxPipeline._prepare_latent_image_ids(2, SIDE // 2, SIDE // 2, CPU, torch.float32),
        txt_ids=text_ids,
        guidance=torch.full((2,), 3.5),
        joint_attention_kwargs={"ip_adapter_image_embeds": [features[:, None]]},
    ).sample
    expected = FluxPipeline._pack_latents(noise(2) - noise(1), 2, LATENT_CHANNELS, SIDE, SIDE)
    theirs = (answer - expected).square().mean()
    theirs.backward()
    torch.testing.assert_close(ours, theirs, **CLOSE)
    for index, processor in enumerate(processors):
        site = network.adapter.site(index)
        for mine, given in ((site.to_k_ip, processor.to_k_ip[0]), (site.to_v_ip, processor.to_v_ip[0])):
            assert given.weight.grad.abs().max() > 0
            torch.testing.assert_close(mine.weight.grad, given.weight.grad, **CLOSE)
            torch.testing.assert_close(mine.bias.grad, given.bias.grad, **CLOSE)
    given = projection.image_embeds.weight.grad
    assert given.abs().max() > 0
    torch.testing.assert_close(network.adapter.image_proj.proj.weight.grad, given, **CLOSE)


def test_flux_without_image_computes_what_it_did(folder: Path) -> None:
    base = open_base(folder)
    nothing = ImagePrompt((None,) * DOUBLES)
    text, times = base.encode_text(CAPTIONS), torch.tensor([0.3, 0.8])
    pipeline = FluxPipeline.from_pretrained(folder)
    before = pipeline.transformer(
        FluxPipeline._pack_latents(noise(1), 2, LATENT_CHANNELS, SIDE, SIDE),
        text["text"],
        text["pooled"],
        times,
        img_ids=FluxPipeline._prepare_latent_image_ids(2, SIDE // 2, SIDE // 2, CPU, torch.float32),
        txt_ids=torch.zeros(text["text"].shape[1], 3),
        guidance=torch.full((2,), 3.5),
    ).sample
    base.install()
    after = base.predict(noise(1), times, text, torch.zeros(2, 6), nothing)
    assert torch.equal(FluxPipeline._pack_latents(after, 2, LATENT_CHANNELS, SIDE, SIDE), before)


def test_text_is_what_diffusers_pipeline_encodes(folder: Path) -> None:
    base = open_base(folder)
    text = base.encode_text(CAPTIONS)
    pipeline = FluxPipeline.from_pretrained(folder)
    length = base.texts[1].tokenizer.model_max_length
    embeds, pooled, _ = pipeline.encode_prompt(CAPTIONS, max_sequence_length=length)
    torch.testing.assert_close(text["text"], embeds)
    torch.testing.assert_close(text["pooled"], pooled)


def test_drawing_equals_diffusers_pipeline(folder: Path) -> None:
    """Guidance, shift by size, order of steps and the scale of latents are all diffusers' own there."""
    base = open_base(folder)
    base.install()
    text, start = base.encode_text(CAPTIONS), noise(5, 16)
    nothing = ImagePrompt((None,) * DOUBLES)
    ours = base.denoise(start, text, None, lambda times: nothing, steps=3, guidance=2.5, progress=lambda: None)
    pipeline = FluxPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pixels = 16 * base.latent_factor
    packed = FluxPipeline._pack_latents(start, 2, LATENT_CHANNELS, 16, 16)
    settings = {"num_inference_steps": 3, "guidance_scale": 2.5, "height": pixels, "width": pixels, "output_type": "pt"}
    theirs = pipeline(
        prompt_embeds=text["text"], pooled_prompt_embeds=text["pooled"], latents=packed, **settings
    ).images
    torch.testing.assert_close(base.decode(ours), theirs, **CLOSE)


@pytest.mark.parametrize("side", [16, 32, 64])
def test_times_are_those_of_the_schedule(folder: Path, side: int) -> None:
    """The even places of a schedule, shifted for the size, are where diffusers draws; a picture there is its noisy one."""
    base = open_base(folder)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(base.pipeline.scheduler.config)
    shift = base.time_shift
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    tokens = FluxPipeline._pack_latents(noise(7, side), 2, LATENT_CHANNELS, side, side).shape[1]
    mean = calculate_shift(tokens, *(scheduler.config[name] for name in names))
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=mean)
    ours = torch.tensor([shift.of(place, side, side) for place in (1.0, 0.75, 0.5, 0.25)])
    torch.testing.assert_close(ours, scheduler.sigmas[:4].float())
    clean, drawn = noise(7), noise(8)
    expected = scheduler.scale_noise(clean, scheduler.timesteps[1:3], drawn)
    torch.testing.assert_close(base.noisy(clean, drawn, ours[1:3]), expected)


def test_larger_pictures_are_trained_on_more_noise(folder: Path) -> None:
    """Logit-normal places, then shifted: their logits have the mean of the shift."""
    base = open_base(folder)
    objective = ObjectiveConfig(timestep_sampling="sigmoid")
    for side in (16, 128):
        shape = (1, side, side)
        times = torch.tensor([draw(0, number, shape, objective, base.time_shift).time for number in range(2000)])
        logits = times.double().logit()
        assert float(logits.mean()) == pytest.approx(base.time_shift.mean(side, side), abs=0.1)
        assert float(logits.std()) == pytest.approx(1, abs=0.1)


def test_guidance_is_told_in_training_and_in_drawing(folder: Path) -> None:
    nothing = ImagePrompt((None,) * DOUBLES)
    answers = []
    for base in (open_base(folder), open_base(folder, guidance=1.0), open_base(folder).told(1.0)):
        base.install()
        answers.append(
            base.predict(noise(1), torch.full((2,), 0.5), base.encode_text(CAPTIONS), torch.zeros(2, 6), nothing)
        )
    assert not base.has_uncond
    assert not torch.equal(answers[0], answers[1])
    assert torch.equal(answers[1], answers[2])


def test_schnell_knows_no_guidance(schnell: Path) -> None:
    base = open_base(schnell)
    base.install()
    assert base.has_uncond
    assert base.time_shift.of(0.5, 64, 64) == pytest.approx(0.5)
    text, nothing = base.encode_text(CAPTIONS), ImagePrompt((None,) * DOUBLES)
    answer = base.predict(noise(1), torch.full((2,), 0.5), text, torch.zeros(2, 6), nothing)
    assert answer.shape == noise(1).shape


def test_training_begins_with_the_base_as_it_is(folder: Path, encoder: ImageEncoder) -> None:
    """As XLabs' does; keys are drawn, or no gradient would reach them while values are zero."""
    base = open_base(folder)
    network = new_adapter(AdapterConfig(), base, encoder)
    for index in range(DOUBLES):
        site = network.adapter.site(index)
        assert site.to_k_ip.weight.abs().max() > 0
        assert all(not parameter.any() for parameter in site.to_v_ip.parameters())
    drawn = new_adapter(AdapterConfig(init="random"), base, encoder)
    assert drawn.adapter.site(0).to_v_ip.weight.abs().max() > 0


@pytest.mark.parametrize(
    ("adapter", "projection", "negative"),
    [
        ({}, Projection.LINEAR, Negative.BLACK_PICTURE),
        ({"tokens": 9, "negative": "zero_features"}, Projection.LINEAR, Negative.ZERO_FEATURES),
        (PLUS, Projection.RESAMPLER, Negative.ZERO_PIXELS),
    ],
)
def test_file_is_known_again_under_published_names(
    folder: Path,
    encoder_folder: Callable[[str], Path],
    adapter: dict[str, Any],
    projection: Projection,
    negative: Negative,
) -> None:
    config = EncoderConfig(model=str(encoder_folder("clip")), precision="fp32")
    encoder = load_image_encoder(config, AdapterConfig(**adapter).kind, CPU)
    network = new_adapter(AdapterConfig(**adapter), open_base(folder), encoder)
    state = network.adapter.state_dict()
    shapes = {published_name(name, network.spec.layout): tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes["double_blocks.1.processor.ip_adapter_double_stream_k_proj.bias"] == (WIDTH,)
    assert all(name.startswith(("double_blocks.", "ip_adapter_proj_model.")) for name in shapes)
    spec = detect(shapes, network.spec.to_metadata())
    assert (spec.projection, spec.negative, spec.backbone) == (projection, negative, "FLUX")
    assert spec.num_tokens == network.spec.num_tokens


def test_a_model_that_reads_another_picture_beside_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "fill")
    diffusers_flux(beside=4).save_pretrained(tmp_path / "fill" / "transformer")
    with pytest.raises(MismatchError, match="reads 32 channels and answers with 16"):
        open_base(tmp_path / "fill")


def test_full_adapters_are_refused(folder: Path, encoder_folder: Callable[[str], Path], tmp_path: Path) -> None:
    config = make_config(folder, encoder_folder("clip"), tmp_path, tmp_path, adapter={"kind": "full"})
    with pytest.raises(MismatchError, match=r'adapter\.kind = "full"'):
        open_base(folder).check(config)


@pytest.mark.parametrize(
    ("adapter", "why"),
    [
        ({"tokens": 4}, None),
        ({"tokens": 16}, None),
        ({"tokens": 8}, r"it reads 4 or 16 image tokens, this has 8"),
        (PLUS, r"it reads base adapters for FLUX\.1, this is FLUX\.1 plus"),
    ],
    ids=["base, 4", "base, 16", "base, 8", "plus"],
)
def test_export_says_where_it_loads(
    folder: Path, encoder_folder: Callable[[str], Path], tmp_path: Path, adapter: dict[str, Any], why: str | None
) -> None:
    """The names are XLabs' in any case: its own loader, and InvokeAI's, go by them."""
    config = EncoderConfig(model=str(encoder_folder("clip")), precision="fp32")
    kind = AdapterConfig(**adapter).kind
    base, reader = open_base(folder), load_image_encoder(config, kind, CPU)
    network = trained(base, reader, **adapter)
    preprocess = Preprocess.of(reader.spec, reader.format.pixel_format, reader.format.crop)
    facts = ExportFacts(title="flux", preprocess=preprocess, training={})
    report = export_adapter(network.adapter, tmp_path / "adapter.safetensors", precision="fp32", facts=facts)
    names = set(read_header(report.path)) - {"__metadata__"}
    again, written = (
        read_tensors(convert_file(report.path, tmp_path / "again.safetensors").path),
        read_tensors(report.path),
    )
    assert again.tensors.keys() == written.tensors.keys(), "to convert it changes nothing"
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in written.tensors.items())
    if kind == "base":
        assert names == set(xlabs_flux(1, blocks=DOUBLES))
    assert report.portability.weights_load == (why is None)
    assert bool(report.portability.reasons) == (why is not None)
    assert why is None or re.search(rf"diffusers cannot load it \({why}\)", report.portability.reasons[0])
    assert load_adapter(report.path).spec == replace(network.spec, family=load_adapter(report.path).spec.family)
    inspected: Any = inspect_path(report.path)
    assert inspected["loads_in"]["diffusers"] == (why is None)
    assert "faults" not in inspected
