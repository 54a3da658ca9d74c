"""The network to train: starts as the paper says, trains what it should, and is the published file from the first."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ipadapter_core.errors import MismatchError
from ipadapter_core.file.spec import Negative, Projection
from ipadapter_core.network.adapter import build_adapter, load_adapter, save_adapter
from ipadapter_trainer.backbones.unet_attention import install
from ipadapter_trainer.backbones.unet_sites import discover_sites
from ipadapter_trainer.config import AdapterConfig, EncoderConfig
from ipadapter_trainer.models.image_encoder import ImageEncoder, load_image_encoder
from ipadapter_trainer.models.network import new_adapter
from support.published import random_tensors, tiny_adapter
from support.tiny_base import around
from support.tiny_unet import diffusers_unet, site_dims

CPU = torch.device("cpu")
# The addresses ComfyUI gives the sites of these layouts, in checkpoint order (tests/comfy/test_sites.py has ComfyUI's).
SD15_BLOCKS = [("input", i) for i in (1, 2, 4, 5, 7, 8)] + [("output", i) for i in range(3, 12)] + [("middle", 0)]


def encoder_of(folder: Path, kind: str = "base", **settings: object) -> ImageEncoder:
    return load_image_encoder(EncoderConfig(model=str(folder), precision="fp32", **settings), kind, CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
def test_sites_are_in_checkpoint_order(layout: str) -> None:
    unet = diffusers_unet(layout)
    sites, modules = discover_sites(unet)
    assert tuple(site.dim for site in sites.sites) == site_dims(unet)
    assert tuple(module.to_q.out_features for module in modules) == site_dims(unet)
    if layout == "sd15":
        assert [site.block for site in sites.sites] == SD15_BLOCKS


@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
def test_unet_without_image_computes_what_it_did(layout: str) -> None:
    unet = diffusers_unet(layout)
    inputs = torch.randn(2, 4, 16, 16), torch.tensor([3, 500]), torch.randn(2, 7, 16)
    added = {"text_embeds": torch.randn(2, 1280), "time_ids": torch.rand(2, 6)} if layout == "sdxl" else None
    before = unet(*inputs, added_cond_kwargs=added).sample
    install(unet)
    assert torch.equal(unet(*inputs, added_cond_kwargs=added).sample, before)


def test_kv_start_as_copies_of_the_text_projections(encoder_folder: Callable[[str], Path]) -> None:
    unet = diffusers_unet("sd15")
    encoder = encoder_of(encoder_folder("clip"))
    network = new_adapter(AdapterConfig(), around(unet), encoder)
    for index, attention in enumerate(discover_sites(unet)[1]):
        assert torch.equal(network.adapter.site(index).to_k_ip.weight, attention.to_k.weight)
        assert torch.equal(network.adapter.site(index).to_v_ip.weight, attention.to_v.weight)
    drawn = new_adapter(AdapterConfig(init="random"), around(unet), encoder)
    assert not torch.equal(drawn.adapter.site(0).to_k_ip.weight, network.adapter.site(0).to_k_ip.weight)


def test_same_seed_same_network(encoder_folder: Callable[[str], Path]) -> None:
    unet, encoder = diffusers_unet("sd15"), encoder_of(encoder_folder("clip"))
    state = torch.random.get_rng_state()
    one, two, other = (new_adapter(AdapterConfig(), around(unet), encoder, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["adapter.image_proj.proj.weight"], other["adapter.image_proj.proj.weight"])


@pytest.mark.parametrize(
    ("adapter", "projection", "tokens", "negative"),
    [
        (AdapterConfig(tokens=7), Projection.LINEAR, 7, Negative.ZERO_FEATURES),
        (AdapterConfig(kind="plus", tokens=3, resampler_dim=32, resampler_head_dim=16, resampler_depth=2),
         Projection.RESAMPLER, 3, Negative.ZERO_PIXELS),
        (AdapterConfig(kind="full"), Projection.MLP, None, Negative.ZERO_PIXELS),
        (AdapterConfig(negative="zero_pixels"), Projection.LINEAR, 4, Negative.ZERO_PIXELS),
    ],
)  # fmt: skip
def test_saved_network_loads_as_what_was_configured(
    tmp_path: Path,
    encoder_folder: Callable[[str], Path],
    adapter: AdapterConfig,
    projection: Projection,
    tokens: int | None,
    negative: Negative,
) -> None:
    encoder = encoder_of(encoder_folder("clip"), adapter.kind, layer=-3)
    network = new_adapter(adapter, around(diffusers_unet("sd15")), encoder)
    save_adapter(network.adapter, tmp_path / "a.safetensors")
    loaded = load_adapter(tmp_path / "a.safetensors")
    assert (loaded.spec.projection, loaded.spec.num_tokens, loaded.spec.negative) == (projection, tokens, negative)
    assert (loaded.spec.layer, loaded.spec.feature, loaded.spec.encoder) == (-3, encoder.feature, network.spec.encoder)
    assert loaded.spec.resampler == network.spec.resampler
    assert network.spec.encoder.name == "clip"


@pytest.mark.parametrize(("blocks", "trained"), [("style", 11), ("composition", 2), ("all", 16)])
def test_only_chosen_blocks_are_trained_and_act(
    encoder_folder: Callable[[str], Path], blocks: str, trained: int
) -> None:
    network = new_adapter(
        AdapterConfig(blocks=blocks), around(diffusers_unet("sd15")), encoder_of(encoder_folder("clip"))
    )
    assert len(network.trained_sites) == trained
    kv = network({"features": torch.randn(2, network.spec.image_dim)}).kv
    assert [index for index, pair in enumerate(kv) if pair is not None] == sorted(network.trained_sites)
    sum(pair[1].sum() for pair in kv if pair is not None).backward()  # type: ignore[union-attr]
    for index in range(16):
        weight = network.adapter.site(index).to_v_ip.weight
        assert (weight.grad is not None) == (index in network.trained_sites)
        assert bool(weight.any()) == (index in network.trained_sites)


def test_trained_parameters_are_the_adapters_alone(encoder_folder: Callable[[str], Path]) -> None:
    unet = diffusers_unet("sd15")
    network = new_adapter(AdapterConfig(), around(unet), encoder_of(encoder_folder("clip")))
    install(unet)
    trained = {id(parameter) for parameter in network.trained_parameters()}
    assert trained == {id(parameter) for parameter in network.adapter.parameters()}
    assert not trained & {id(parameter) for parameter in unet.parameters()}


def test_pretrained_goes_on_from_a_file(tmp_path: Path, encoder_folder: Callable[[str], Path]) -> None:
    unet, encoder = diffusers_unet("sd15"), encoder_of(encoder_folder("clip"))
    first = new_adapter(AdapterConfig(), around(unet), encoder, seed=5)
    path = tmp_path / "first.safetensors"
    save_adapter(first.adapter, path)
    second = new_adapter(AdapterConfig(pretrained=str(path)), around(unet), encoder, seed=6)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    with pytest.raises(MismatchError, match=r"first\.safetensors .*adapter\.tokens 4, not 5"):
        new_adapter(AdapterConfig(pretrained=str(path), tokens=5), around(unet), encoder)


def test_gradient_checkpointing_changes_no_gradient(encoder_folder: Callable[[str], Path]) -> None:
    encoder = encoder_of(encoder_folder("clip"))
    gradients = []
    for checkpointing in (False, True):
        unet = diffusers_unet("sd15")
        network = new_adapter(AdapterConfig(), around(unet), encoder)
        install(unet)
        if checkpointing:
            unet.enable_gradient_checkpointing()
            unet.train()
        torch.manual_seed(0)
        kv = network({"features": torch.randn(1, network.spec.image_dim)}).kv
        out = unet(
            torch.randn(1, 4, 8, 8), torch.tensor([9]), torch.randn(1, 7, 16), cross_attention_kwargs={"image_kv": kv}
        )
        out.sample.square().mean().backward()
        gradients.append(network.adapter.site(15).to_v_ip.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_layer_that_the_encoder_does_not_have(encoder_folder: Callable[[str], Path]) -> None:
    with pytest.raises(MismatchError, match="a layer from -4 to -1"):
        encoder_of(encoder_folder("clip"), "plus", layer=-5)


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        ({"tokens": 5}, {"tokens": 4}, r"adapter\.tokens 5, not 4\. .*set adapter\.tokens = 5"),
        ({}, {"kind": "plus"}, r'adapter\.kind base, not plus; .*set adapter\.kind = "base"'),
        (
            {"kind": "plus", "resampler_dim": 64},
            {"kind": "plus", "resampler_dim": 128},
            r"adapter\.resampler_dim 64, not 128\. .*set adapter\.resampler_dim = 64",
        ),
        (
            {"kind": "plus", "resampler_dim": 64, "resampler_depth": 2},
            {"kind": "plus"},
            r"adapter\.resampler_depth 2, not 4\. .*set adapter\.resampler_depth = 2",
        ),
    ],
)
def test_a_wrong_start_names_the_size_that_differs(
    tmp_path: Path,
    encoder_folder: Callable[[str], Path],
    there: dict[str, object],
    here: dict[str, object],
    said: str,
) -> None:
    unet, path = diffusers_unet("sd15"), tmp_path / "start.safetensors"
    made, asked = AdapterConfig.model_validate(there), AdapterConfig.model_validate({**here, "pretrained": str(path)})
    save_adapter(new_adapter(made, around(unet), encoder_of(encoder_folder("clip"), made.kind)).adapter, path)
    with pytest.raises(MismatchError, match=said):
        new_adapter(asked, around(unet), encoder_of(encoder_folder("clip"), asked.kind))


def test_a_start_for_another_encoder_or_base_says_so(tmp_path: Path, encoder_folder: Callable[[str], Path]) -> None:
    unet, path = diffusers_unet("sd15"), tmp_path / "start.safetensors"
    encoder = encoder_of(encoder_folder("clip"), "plus")
    start = AdapterConfig(kind="plus", resampler_dim=64, pretrained=str(path))
    save_adapter(new_adapter(start.model_copy(update={"pretrained": None}), around(unet), encoder).adapter, path)
    with pytest.raises(MismatchError, match=r"attention layers of widths .*choose a base\.model"):
        new_adapter(start, around(diffusers_unet("sdxl")), encoder)
    wide = build_adapter(random_tensors(tiny_adapter("base", site_dims=site_dims(unet), image_dim=28)), {})
    save_adapter(wide, path)
    with pytest.raises(
        MismatchError, match=r"features of width 28, not 20\..*choose the encoder\.model it reads: .*28"
    ):
        new_adapter(AdapterConfig(pretrained=str(path)), around(unet), encoder_of(encoder_folder("clip")))


def test_sizes_that_are_not_said_are_those_of_the_start(tmp_path: Path, encoder_folder: Callable[[str], Path]) -> None:
    unet, path = diffusers_unet("sd15"), tmp_path / "start.safetensors"
    encoder = encoder_of(encoder_folder("clip"), "plus")
    made = new_adapter(AdapterConfig(kind="plus", tokens=5, resampler_dim=64), around(unet), encoder)
    save_adapter(made.adapter, path)
    assert new_adapter(AdapterConfig(kind="plus", pretrained=str(path)), around(unet), encoder).spec == made.spec
