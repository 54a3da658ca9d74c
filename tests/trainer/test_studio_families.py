"""Z-Image and Qwen-Image in training: the formula in diffusers' own model, text and latents as its pipelines have them."""

# B pictures, L cells of the picture, H heads, D head dim

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline, calculate_shift
from torch import Tensor
from torch.nn.functional import linear

from ipadapter_core.errors import MismatchError
from ipadapter_trainer.backbones.image_prompt import ImagePrompt
from ipadapter_trainer.config import AdapterConfig, BaseModelConfig, EncoderConfig
from ipadapter_trainer.config_file import parse_config
from ipadapter_trainer.models.image_encoder import load_image_encoder
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.models.network import TrainableAdapter, new_adapter
from support.encoders import WIDTH
from support.steps import difference, loss_and_gradients
from support.tiny_studio_base import write_studio_base

CPU = torch.device("cpu")
FAMILIES = ["z_image", "qwen_image"]
CAPTIONS = ["a fox", "", "a much longer text that says what else is to be seen, and takes more places than the others"]
SIZE = (12, 8)  # latent cells of 24 tokens, which Z-Image pads to 32
RELATIVE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = write_studio_base(tmp_path_factory.mktemp("base") / family, family)
        return made[family]

    return of


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def base(family: str, folder: Callable[[str], Path]) -> Any:
    """Not `install`ed."""
    return load_base(BaseModelConfig(model=str(folder(family)), precision="fp32"), CPU)


@pytest.fixture
def network(base: Any, encoder_folder: Callable[[str], Path]) -> TrainableAdapter:
    return adapter_for(base, encoder_folder)


def adapter_for(base: Any, encoder_folder: Callable[[str], Path], **settings: Any) -> TrainableAdapter:
    """A new one, whose values are not zero unless asked."""
    config = AdapterConfig(**{"kind": "plus", "tokens": 4, "resampler_dim": 64, "init": "random", **settings})
    encoder = load_image_encoder(EncoderConfig(model=str(encoder_folder("clip")), precision="fp32"), "plus", CPU)
    return new_adapter(config, base, encoder)


def features(rows: int = len(CAPTIONS)) -> dict[str, Tensor]:
    return {"features": torch.randn(rows, 5, WIDTH, generator=torch.Generator().manual_seed(1))}


def given(base: Any) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor]:
    """Noisy latents, times, text, sizes."""
    noisy = torch.randn(len(CAPTIONS), 16, *SIZE, generator=torch.Generator().manual_seed(2))
    times = torch.tensor([0.9, 0.4, 0.05])
    return noisy, times, base.encode_text(CAPTIONS), torch.zeros(len(CAPTIONS), 6)


def nothing(base: Any) -> ImagePrompt:
    return ImagePrompt((None,) * len(base.sites.sites))


def in_pipeline(base: Any, family: str) -> Tensor:
    """What diffusers' own pipeline asks its own model of each picture by itself."""
    noisy, times, _, _ = given(base)
    answers = []
    for row, time, caption in zip(noisy, times, CAPTIONS, strict=True):
        if family == "z_image":
            text, _ = base.pipeline.encode_prompt([caption], device=CPU, do_classifier_free_guidance=False)
            answers.append(-base.model([row[:, None]], 1 - time[None], text).sample[0][:, 0])
            continue
        text, mask = base.pipeline.encode_prompt(caption, device=CPU)
        tokens = QwenImagePipeline._pack_latents(row, 1, 16, *SIZE)
        shapes = [[(1, SIZE[0] // 2, SIZE[1] // 2)]]
        answer = base.model(tokens, text, mask, time[None], img_shapes=shapes).sample
        answers.append(QwenImagePipeline._unpack_latents(answer, 8 * SIZE[0], 8 * SIZE[1], 8)[0, :, 0])
    return torch.stack(answers)


@torch.no_grad()
def test_without_an_image_a_batch_is_what_the_pipeline_asks_of_each_picture(base: Any, family: str) -> None:
    """Also texts of other lengths beside, which are padded."""
    expected = in_pipeline(base, family)
    base.install()
    assert difference(base.predict(*given(base), nothing(base)), expected) < RELATIVE


class Plain:
    """The contract's formula around diffusers' own attention: its query is read off its norm, its output changed before
    the projection."""

    def __init__(self, attention: Any, weights: dict[str, Tensor], tokens: Tensor, cells: int) -> None:
        self.weights, self.tokens, self.cells = weights, tokens, cells
        attention.norm_q.register_forward_hook(self.note)
        attention.to_out[0].register_forward_pre_hook(self.add)

    def note(self, _module: Any, _given: Any, query: Tensor) -> None:
        self.query = query[:, : self.cells]

    def add(self, _module: Any, given: tuple[Tensor]) -> tuple[Tensor]:
        head_dim = self.query.shape[-1]
        key, value = (
            linear(self.tokens, self.weights[name]).unflatten(-1, (-1, head_dim)) for name in ("to_k_ip", "to_v_ip")
        )
        key = key / (key.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * self.weights["norm_ip_k"]
        scores = torch.einsum("blhd,bthd->bhlt", self.query, key) / math.sqrt(head_dim)
        image = torch.einsum("bhlt,bthd->blhd", scores.softmax(-1), value).flatten(2)
        out = given[0].clone()
        out[:, : self.cells] += image
        return (out,)


def plainly(base: Any, network: TrainableAdapter, family: str) -> Tensor:
    """The model's answers with hooks in diffusers' own processors, of each picture by itself."""
    cells, tokens = SIZE[0] * SIZE[1] // 4, network.adapter.image_proj(features()["features"])
    attentions = [
        layer.attention if family == "z_image" else layer.attn
        for layer in (base.model.layers if family == "z_image" else base.model.transformer_blocks)
    ]
    plain = []
    for number, attention in enumerate(attentions):
        parts = network.adapter.ip_adapter[str(number)].named_parameters()
        weights = {name.removesuffix(".weight"): parameter for name, parameter in parts}
        plain.append(Plain(attention, weights, tokens, cells))
    noisy, times, text, sizes = given(base)
    answers = []
    for row in range(len(CAPTIONS)):
        for each in plain:
            each.tokens = tokens[row : row + 1]
        one = {name: tensor[row : row + 1] for name, tensor in text.items()}
        answers.append(predict_as_installed(base, noisy[row : row + 1], times[row : row + 1], one, sizes[:1], family))
    return torch.cat(answers)


def predict_as_installed(base: Any, noisy: Tensor, times: Tensor, text: Any, sizes: Tensor, family: str) -> Tensor:
    """Through diffusers' own processors, which know no image."""
    count = int(text["mask"].sum())
    words = text["text"][:, :count]
    if family == "z_image":
        return -torch.stack(base.model(list(noisy[:, :, None]), 1 - times, list(words)).sample)[:, :, 0]
    tokens = QwenImagePipeline._pack_latents(noisy, 1, 16, *SIZE)
    answer = base.model(tokens, words, None, times, img_shapes=[[(1, SIZE[0] // 2, SIZE[1] // 2)]]).sample
    return QwenImagePipeline._unpack_latents(answer, 8 * SIZE[0], 8 * SIZE[1], 8)[:, :, 0]


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_a_step_is_the_formula_in_diffusers_own_attention(
    base: Any, family: str, network: TrainableAdapter, folder: Callable[[str], Path], is_checkpointed: bool
) -> None:
    """Loss, and the gradient of every weight; with checkpointing two forwards come before their backward passes."""
    base.install()
    if is_checkpointed:
        base.enable_checkpointing()
    inputs = given(base)
    answer = base.predict(*inputs, network(features()))
    base.predict(*inputs, network({"features": features()["features"].flip(0)}))
    loss, gradients = loss_and_gradients(answer, network)
    other = load_base(BaseModelConfig(model=str(folder(family)), precision="fp32"), CPU)
    expected = plainly(other, network, family)
    expected_loss, expected_gradients = loss_and_gradients(expected, network)
    assert difference(answer, expected) < RELATIVE
    assert difference(answer, base.predict(*inputs, nothing(base))) > 1e-3, "the image does nothing"
    assert loss == pytest.approx(expected_loss, rel=RELATIVE)
    for name, gradient in expected_gradients.items():
        assert gradient.any(), name
        assert difference(gradients[name], gradient) < 1e-4, name


@torch.no_grad()
def test_a_new_adapter_changes_nothing_yet(base: Any, encoder_folder: Callable[[str], Path]) -> None:
    """As `adapter.init` says "text"; keys are normed as the model's own."""
    network = adapter_for(base, encoder_folder, init="text")
    base.install()
    inputs = given(base)
    assert torch.equal(base.predict(*inputs, network(features())), base.predict(*inputs, nothing(base)))
    for attention, site in zip(base.attentions, network.adapter.ip_adapter.values(), strict=True):
        assert torch.equal(site.norm_ip_k.weight, attention.norm_k.weight)
        assert site.to_k_ip.weight.any()


def test_noise_times_and_answers_are_diffusers_schedulers(base: Any) -> None:
    """Pictures of two sizes; the last sigma, which Qwen-Image's sampling moves, is no matter of training."""
    latents, noise = (torch.randn(2, 16, *SIZE, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    config = base.pipeline.scheduler.config
    for place, size in ((0.3, SIZE), (0.8, (64, 96))):
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(config, shift_terminal=None)
        ends = [config.get(name) for name in ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")]
        mean = calculate_shift(size[0] * size[1] // 4, *ends)
        scheduler.set_timesteps(sigmas=[place], mu=mean if config.use_dynamic_shifting else None)
        time = base.time_shift.of(place, *size)
        assert time == pytest.approx(scheduler.sigmas[0].item(), rel=1e-6)
        at = torch.tensor([time, time])
        noisy = base.noisy(latents, noise, at)
        torch.testing.assert_close(noisy, scheduler.scale_noise(latents, scheduler.timesteps[:1], noise))
        clean = scheduler.step(base.target(latents, noise, at), scheduler.timesteps[0], noisy).prev_sample
        torch.testing.assert_close(clean, latents, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_drawing_is_the_pipelines(base: Any, family: str) -> None:
    """Schedule, packing, decoding; the pipeline goes through our processors, which then show no image."""
    base.install()
    noise = torch.randn(2, 16, *SIZE, generator=torch.Generator().manual_seed(3))
    size = {"height": 8 * SIZE[0], "width": 8 * SIZE[1]}
    guided = {"guidance_scale": 0.0} if family == "z_image" else {"true_cfg_scale": 1.0}
    latents = noise if family == "z_image" else QwenImagePipeline._pack_latents(noise, 2, 16, *SIZE)
    common = {"num_inference_steps": 3, "output_type": "pt", **size, **guided}
    expected = base.pipeline(CAPTIONS[1:], latents=latents, **common).images
    text = base.encode_text(CAPTIONS[1:])
    drawn = base.denoise(noise, text, None, lambda times: nothing(base), steps=3, guidance=1.0, progress=lambda: None)
    torch.testing.assert_close(base.decode(drawn), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_latents_go_there_and_back(base: Any, family: str) -> None:
    pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(4)) * 2 - 1
    mean, std = base.encode_pixels(pixels)
    assert mean.shape == std.shape == (2, 16, 4, 6)
    seen = base.vae.decode(mean if family == "z_image" else mean[:, :, None]).sample
    torch.testing.assert_close(
        base.decode(base.scale_latents(mean)), (seen.reshape(pixels.shape) / 2 + 0.5).clamp(0, 1)
    )


def test_long_texts_are_cut_and_all_are_of_one_size(base: Any) -> None:
    text = base.encode_text(["a", "b" * 2000])
    assert {name: tensor.shape[:2] for name, tensor in text.items()} == {"text": (2, 512), "mask": (2, 512)}
    counts = text["mask"].sum(dim=1)
    assert counts[1] == 512 > counts[0] > 0
    assert not text["text"][0, int(counts[0]) :].any()


@torch.no_grad()
def test_half_precision(family: str, folder: Callable[[str], Path], encoder_folder: Callable[[str], Path]) -> None:
    base = load_base(BaseModelConfig(model=str(folder(family)), precision="bf16"), CPU)
    network = adapter_for(base, encoder_folder)
    base.install()
    answer = base.predict(*given(base), network(features()))
    assert answer.dtype is torch.bfloat16
    assert answer.isfinite().all()


def test_other_kinds_of_adapters_are_refused(base: Any, family: str) -> None:
    sections = {"base": {"model": "b"}, "encoder": {"model": "e"}, "data": {"path": "d"}}
    config = parse_config(sections | {"train": {"output": "o", "steps": 1}}, "test")
    with pytest.raises(MismatchError, match=r'adapter\.kind = "base".*set adapter\.kind = "plus"'):
        base.check(config)


@pytest.mark.parametrize(
    ("family", "setting", "found"),
    [
        ("z_image", {"siglip_feat_dim": 16}, "Z-Image-Omni"),
        ("z_image", {"qk_norm": False}, "without norms"),
        ("qwen_image", {"zero_cond_t": True}, "Qwen-Image-Edit"),
        ("qwen_image", {"guidance_embeds": True}, "guidance"),
    ],
)
def test_relatives_are_refused(
    family: str, setting: dict[str, Any], found: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(folder(family), tmp_path / "base")
    path = copy / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    for weights in (copy / "transformer").glob("*.safetensors"):
        model = load_base(BaseModelConfig(model=str(folder(family)), precision="fp32"), CPU).model
        type(model).from_config(model.config | setting).save_pretrained(weights.parent)
    with pytest.raises(MismatchError, match=found):
        load_base(BaseModelConfig(model=str(copy), precision="fp32"), CPU)


def test_another_autoencoder_is_refused(family: str, folder: Callable[[str], Path]) -> None:
    other = {"z_image": "qwen_image", "qwen_image": "z_image"}[family]
    with pytest.raises(MismatchError, match=r"base\.vae = .*Expected: for (Z-Image|Qwen-Image): Autoencoder"):
        load_base(BaseModelConfig(model=str(folder(family)), vae=str(folder(other) / "vae"), precision="fp32"), CPU)
