"""Z-Image and Qwen-Image in training: the formula in diffusers' own model, text and latents as its pipelines have them."""

# B pictures, L cells of the picture, H heads, D head dim

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from ipadapter_core.errors import MismatchError
from ipadapter_core.file.spec import Feature
from ipadapter_core.network.adapter import load_adapter, save_adapter
from ipadapter_trainer.backbones.image_prompt import ImagePrompt
from ipadapter_trainer.config import AdapterConfig, BaseModelConfig, ObjectiveConfig
from ipadapter_trainer.draws import draw
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.models.network import TrainableAdapter, new_adapter
from ipadapter_trainer.models.image_encoder import load_image_encoder
from ipadapter_trainer.config import EncoderConfig
from support.encoders import WIDTH
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


NOTHING = ImagePrompt(())


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


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@torch.no_grad()
def test_without_an_image_a_batch_is_what_the_pipeline_asks_of_each_picture(base: Any, family: str) -> None:
    """Also texts of other lengths beside, which are padded."""
    expected = in_pipeline(base, family)
    base.install()
    assert difference(base.predict(*given(base), ImagePrompt((None,) * len(base.sites.sites))), expected) < RELATIVE


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


def loss_and_gradients(answer: Tensor, network: TrainableAdapter) -> tuple[float, dict[str, Tensor]]:
    noise = torch.randn(answer.shape, generator=torch.Generator().manual_seed(5))
    loss = (answer - noise).square().mean()
    names, parameters = zip(*network.named_parameters(), strict=True)
    return loss.item(), dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


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
    assert difference(answer, in_pipeline(load_base(BaseModelConfig(model=str(folder(family)), precision="fp32"), CPU), family)) > 1e-3
    assert loss == pytest.approx(expected_loss, rel=RELATIVE)
    for name, gradient in expected_gradients.items():
        assert gradient.any(), name
        assert difference(gradients[name], gradient) < 1e-4, name
