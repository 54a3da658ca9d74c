"""Attention sites are found by walking the model, in the order of published files, and matched to the adapter."""

import pytest
from torch import nn

from ipadapter_core.backbone.registry import discover_sites
from ipadapter_core.backbone.sites import Sites
from ipadapter_core.backbone.unet import is_deep
from ipadapter_core.errors import MismatchError
from ipadapter_core.file.spec import AdapterSpec, Feature, Negative, Projection
from ipadapter_core.network.fit import check_sites
from support.published import SD15_SITES, SDXL_SITES

from .hand_made_sites import make_sites

CONTEXT_DIM = 16


class Attention(nn.Module):
    def __init__(self, heads: int, dim_head: int, context_dim: int) -> None:
        super().__init__()
        self.heads, self.dim_head = heads, dim_head
        self.to_k = nn.Linear(context_dim, heads * dim_head, bias=False, device="meta")


class Layer(nn.Module):
    def __init__(self, heads: int, dim_head: int, *, has_cross_attention: bool = True) -> None:
        super().__init__()
        self.attn1 = Attention(heads, dim_head, heads * dim_head)
        self.attn2 = Attention(heads, dim_head, CONTEXT_DIM) if has_cross_attention else None


class Transformer(nn.Module):
    def __init__(self, *layers: Layer) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList(layers)


class UNet(nn.Module):
    """The blocks of ComfyUI's UNetModel: lists of lists of modules, some of them transformers."""

    def __init__(self, down: list[nn.Sequential], middle: nn.Sequential | None, up: list[nn.Sequential]) -> None:
        super().__init__()
        self.input_blocks, self.output_blocks = nn.ModuleList(down), nn.ModuleList(up)
        self.middle_block = middle


def block(*layers: Layer) -> nn.Sequential:
    """A ResBlock, a transformer where there are layers, and another module."""
    return nn.Sequential(nn.Identity(), *([Transformer(*layers)] if layers else []), nn.Identity())


def unet(middle: nn.Sequential | None) -> UNet:
    return UNet([block(), block(Layer(2, 4)), block(Layer(4, 4), Layer(4, 4))], middle, [block(Layer(3, 8)), block()])


def spec(base: str, width: int, site_dims: tuple[int, ...]) -> AdapterSpec:
    return AdapterSpec(
        family=f"{base} base",
        base=base,
        projection=Projection.LINEAR,
        feature=Feature.IMAGE_EMBEDS,
        image_dim=24,
        cross_attention_dim=width,
        num_tokens=4,
        site_dims=site_dims,
        negative=Negative.ZERO_FEATURES,
    )


def test_sites_are_in_checkpoint_order_down_up_middle() -> None:
    found = discover_sites(unet(block(Layer(5, 8), Layer(5, 8))))
    addresses = [(site.index, *site.address) for site in found.sites]
    assert addresses == [
        (0, "input", 1, 0),
        (1, "input", 2, 0),
        (2, "input", 2, 1),
        (3, "output", 0, 0),
        (4, "middle", 0, 0),
        (5, "middle", 0, 1),
    ]


def test_transformers_are_numbered_as_they_run() -> None:
    found = discover_sites(unet(block(Layer(5, 8))))
    assert [4 * site.depth for site in found.sites] == [0, 1, 1, 3, 2]


def test_heads_and_widths_are_those_of_the_model() -> None:
    found = discover_sites(unet(block(Layer(5, 8))))
    assert [(site.heads, site.head_dim, site.dim) for site in found.sites] == [
        (2, 4, 8),
        (4, 4, 16),
        (4, 4, 16),
        (3, 8, 24),
        (5, 8, 40),
    ]
    assert {site.context_dim for site in found.sites} == {CONTEXT_DIM}


def test_layers_without_cross_attention_are_passed_over() -> None:
    model = UNet([block(Layer(2, 4, has_cross_attention=False)), block(Layer(2, 4))], block(), [block()])
    found = discover_sites(model)
    assert [site.block for site in found.sites] == [("input", 1)]
    assert found.sites[0].depth == 0


@pytest.mark.parametrize("middle", [None, block()], ids=["no middle block", "a middle block without transformer"])
def test_distilled_models_need_no_middle_attention(middle: nn.Sequential | None) -> None:
    found = discover_sites(unet(middle))
    assert [site.group for site in found.sites] == ["input"] * 3 + ["output"]


def test_only_some_transformers_being_deep_makes_a_model_deep() -> None:
    assert is_deep(discover_sites(unet(block())).sites)
    assert not is_deep(discover_sites(UNet([block(Layer(2, 4))], block(), [block(Layer(2, 4))])).sites)


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(2, 2),
        UNet([block()], block(), [block()]),
        UNet([], None, []),
        UNet([block(Layer(2, 4, has_cross_attention=False))], block(), []),
        UNet([nn.Sequential(Transformer(Layer(2, 4)), Transformer(Layer(2, 4)))], block(), []),
    ],
    ids=["no UNet", "no transformer", "empty", "self-attention only", "two transformers in one block"],
)
def test_a_model_that_cannot_be_patched_is_named(model: nn.Module) -> None:
    with pytest.raises(MismatchError) as caught:
        discover_sites(model)
    assert f"a model of class {type(model).__name__} without cross-attention layers" in str(caught.value)


def test_an_adapter_fits_a_model_of_its_base(sd15: Sites, sdxl: Sites) -> None:
    check_sites(spec("SD1.5", 768, SD15_SITES), sd15)
    check_sites(spec("SDXL", 2048, SDXL_SITES), sdxl)


def test_an_sdxl_adapter_on_an_sd15_model_names_both(sd15: Sites) -> None:
    with pytest.raises(MismatchError) as caught:
        check_sites(spec("SDXL", 2048, SDXL_SITES), sd15)
    message = str(caught.value)
    assert "an adapter for SDXL (SDXL base: 70 attention layers, 2048-wide tokens)" in message
    assert "a model of the SD1.5 kind (16 attention layers, 768-wide tokens)" in message
    assert message.endswith("What to do: load an SDXL model, or an adapter made for SD1.5.")


def test_an_sd15_adapter_on_an_sdxl_model_names_both(sdxl: Sites) -> None:
    with pytest.raises(MismatchError) as caught:
        check_sites(spec("SD1.5", 768, SD15_SITES), sdxl)
    message = str(caught.value)
    assert "an adapter for SD1.5 (SD1.5 base: 16 attention layers, 768-wide tokens)" in message
    assert "a model of the SDXL kind (70 attention layers, 2048-wide tokens)" in message
    assert message.endswith("What to do: load an SD1.5 model, or an adapter made for SDXL.")


@pytest.mark.parametrize(
    ("width", "dims"),
    [(768, SD15_SITES[:-1]), (1024, SD15_SITES), (768, SD15_SITES[::-1]), (768, (*SD15_SITES[:-1], 640))],
    ids=["one site less", "other token width", "other order", "other channels"],
)
def test_nearly_the_same_is_not_the_same(sd15: Sites, width: int, dims: tuple[int, ...]) -> None:
    with pytest.raises(MismatchError):
        check_sites(spec("SD1.5", width, dims), sd15)


@pytest.mark.parametrize(
    ("depths", "name"),
    [
        ({"input": (2, 2, 4, 4), "output": (4, 4, 10, 2, 1, 1)}, "SSD-1B"),
        ({"input": (1, 1, 2, 2), "output": (2, 2, 2, 1, 1, 1)}, "Segmind Vega"),
        ({"input": (2, 5), "output": (5, 5, 2, 2)}, "KOALA 700M"),
        ({"input": (2, 6), "middle": (6,), "output": (6, 6, 2, 2)}, "KOALA 1B"),
        ({"input": (3,)}, "2048-wide, 3-layer"),
    ],
)
def test_distilled_models_are_known_by_their_layers(depths: dict[str, tuple[int, ...]], name: str) -> None:
    """Layers per transformer as in ComfyUI's `unet_config_from_diffusers_unet`."""
    layout = [(block, n, depth, 64) for block, numbers in depths.items() for n, depth in enumerate(numbers)]
    assert make_sites(layout, context_dim=2048, head_dim=64).family == name
