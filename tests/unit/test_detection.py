"""Every published adapter is recognised by its tensors or refused by its name, and every other file is refused."""

import re

import pytest

from ipadapter_core.errors import UnknownCheckpointError, UnreadableFileError, UnsupportedFamilyError
from ipadapter_core.file.detect import canonical_name, detect
from ipadapter_core.file.signatures import FOREIGN as FOREIGN_ROWS
from ipadapter_core.file.signatures import UNSUPPORTED
from ipadapter_core.file.spec import AdapterSpec, EncoderHint, FaceSpec, Feature, Negative, Projection, ResamplerSpec
from support.published import OTHER_FILES, PUBLISHED, SD15_SITES, SDXL_SITES, Shapes
from support.published import sites as site_shapes

SD15 = {"base": "SD1.5", "cross_attention_dim": 768, "site_dims": SD15_SITES}
SDXL = {"base": "SDXL", "cross_attention_dim": 2048, "site_dims": SDXL_SITES}
POOLED = {
    "projection": Projection.LINEAR,
    "feature": Feature.IMAGE_EMBEDS,
    "num_tokens": 4,
    "negative": Negative.ZERO_FEATURES,
}
SEQUENCE = {"feature": Feature.HIDDEN_STATES, "image_dim": 1280, "negative": Negative.ZERO_PIXELS, "layer": -2}
IDENTITY = {
    "projection": Projection.IDENTITY,
    "feature": Feature.IDENTITY,
    "image_dim": 512,
    "negative": Negative.ZERO_FEATURES,
}
IDENTITY_AND_FACE = SEQUENCE | {"projection": Projection.IDENTITY_AND_FACE}
KOLORS = {"base": "Kolors", "image_dim": 1024, "encoder": EncoderHint(image_size=336)}
SD15_RESAMPLER = ResamplerSpec(dim=768, depth=4, num_heads=12, head_dim=64, ff_dim=3072, num_queries=16)
SDXL_RESAMPLER = ResamplerSpec(dim=1280, depth=4, num_heads=20, head_dim=64, ff_dim=5120, num_queries=16)
SD15_PLUS = AdapterSpec(
    family="SD1.5 plus (also plus-face and composition)",
    projection=Projection.RESAMPLER,
    num_tokens=16,
    resampler=SD15_RESAMPLER,
    **SD15,
    **SEQUENCE,
)
SDXL_PLUS = AdapterSpec(
    family="SDXL plus (also plus-face and composition)",
    projection=Projection.RESAMPLER,
    num_tokens=16,
    resampler=SDXL_RESAMPLER,
    **SDXL,
    **SEQUENCE,
)


def face(crop_size: int, token_dim: int, *, has_shortcut: bool | None = None) -> FaceSpec:
    """Of the MLP that reads ArcFace's 512 numbers with 1024 hidden units."""
    return FaceSpec(
        identity_dim=512, hidden_dim=1024, crop_size=crop_size, token_dim=token_dim, has_shortcut=has_shortcut
    )


FLUX = {
    "base": "FLUX.1",
    "backbone": "FLUX",
    "feature": Feature.IMAGE_EMBEDS,
    "cross_attention_dim": 4096,
}
XLABS = {
    **FLUX,
    "projection": Projection.LINEAR,
    "image_dim": 768,
    "negative": Negative.BLACK_PICTURE,
    "site_dims": (3072,) * 19,
    "layout": "XLabs FLUX",
}
ANIMA = {"base": "Anima", "backbone": "Anima", "feature": Feature.LAST_HIDDEN_STATE, "site_dims": (2048,) * 28}
ANIMA_PE = {
    **ANIMA,
    "family": "Anima PE",
    "projection": Projection.PERCEIVER,
    "image_dim": 1024,
    "cross_attention_dim": 1024,
    "num_tokens": 16,
    "resampler": ResamplerSpec(dim=1024, depth=2, num_heads=8, head_dim=128, ff_dim=4096, num_queries=16),
    "negative": Negative.SAME_PICTURE,
    "encoder": EncoderHint(kind="PE-Core", image_size=336, crop="stretch"),
    "head_dim": 128,
}
STUDIO = {
    "projection": Projection.RESAMPLER,
    "feature": Feature.HIDDEN_STATES,
    "layer": -2,
    "image_dim": 1152,
    "cross_attention_dim": 1280,
    "num_tokens": 16,
    "resampler": SDXL_RESAMPLER,
    "negative": Negative.ZERO_FEATURES,
    "head_dim": 128,
    "layout": "IP-Adapter Studio",
}
SUPPORTED = {
    **dict.fromkeys(
        ("sd15_base", "sd15_light"), AdapterSpec(family="SD1.5 base or light", image_dim=1024, **SD15, **POOLED)
    ),
    "sd15_vit_g": AdapterSpec(family="SD1.5 vit-G", image_dim=1280, **SD15, **POOLED),
    **dict.fromkeys(("sd15_plus", "sd15_plus_face", "sd15_composition"), SD15_PLUS),
    "sd15_full_face": AdapterSpec(
        family="SD1.5 full-face", projection=Projection.MLP, num_tokens=None, **SD15, **SEQUENCE
    ),
    "sdxl_vit_h": AdapterSpec(family="SDXL vit-H", image_dim=1024, **SDXL, **POOLED),
    "sdxl_big_g": AdapterSpec(family="SDXL bigG", image_dim=1280, **SDXL, **POOLED),
    **dict.fromkeys(("sdxl_plus", "sdxl_plus_face", "sdxl_composition"), SDXL_PLUS),
    "kolors_plus": AdapterSpec(
        family="Kolors plus",
        projection=Projection.RESAMPLER,
        num_tokens=16,
        resampler=ResamplerSpec(dim=2048, depth=4, num_heads=12, head_dim=64, ff_dim=8192, num_queries=16),
        **SDXL | SEQUENCE | KOLORS,
    ),
    "faceid_sd15": AdapterSpec(family="SD1.5 FaceID", num_tokens=4, face=face(224, 768), **SD15, **IDENTITY),
    "faceid_sdxl": AdapterSpec(family="SDXL FaceID", num_tokens=4, face=face(256, 2048), **SDXL, **IDENTITY),
    "portrait_sd15": AdapterSpec(
        family="SD1.5 FaceID portrait", num_tokens=16, face=face(224, 768), **SD15, **IDENTITY
    ),
    "portrait_sdxl": AdapterSpec(
        family="SDXL FaceID portrait", num_tokens=16, face=face(256, 2048), **SDXL, **IDENTITY
    ),
    **dict.fromkeys(
        ("faceid_plus_sd15", "faceid_plusv2_sd15"),
        AdapterSpec(
            family="SD1.5 FaceID-Plus",
            face=face(224, 768),  # v1 or v2: nobody can tell
            resampler=ResamplerSpec(dim=768, depth=4, num_heads=12, head_dim=64, ff_dim=3072, num_queries=4),
            num_tokens=4,
            **SD15,
            **IDENTITY_AND_FACE,
        ),
    ),
    "faceid_plusv2_sdxl": AdapterSpec(
        family="SDXL FaceID-Plus v2",
        face=face(256, 2048, has_shortcut=True),
        resampler=ResamplerSpec(dim=2048, depth=4, num_heads=32, head_dim=64, ff_dim=8192, num_queries=4),
        num_tokens=4,
        **SDXL,
        **IDENTITY_AND_FACE,
    ),
    "portrait_unnorm_sdxl": AdapterSpec(
        family="SDXL FaceID portrait-unnorm (InstantID's has the same tensors)",
        num_tokens=16,
        resampler=SDXL_RESAMPLER,
        face=FaceSpec(identity_dim=512, crop_size=256, token_dim=2048, is_normed=False),
        **SDXL,
        **IDENTITY | {"projection": Projection.RESAMPLER},
    ),
    "xlabs_v1": AdapterSpec(family="XLabs FLUX v1", num_tokens=4, **XLABS),
    "xlabs_v2": AdapterSpec(family="XLabs FLUX v2", num_tokens=16, **XLABS),
    "instantx_flux": AdapterSpec(
        family="InstantX FLUX",
        projection=Projection.TWO_LAYERS,
        image_dim=1152,
        num_tokens=128,
        hidden_dim=2304,
        head_dim=128,
        encoder=EncoderHint(kind="SigLIP", image_size=384),
        negative=Negative.ZERO_FEATURES,
        site_dims=(3072,) * 57,
        layout="InstantX FLUX",
        **FLUX,
    ),
    "instantx_sd35": AdapterSpec(
        family="InstantX SD3.5",
        base="SD3.5-Large",
        backbone="SD3",
        projection=Projection.TIMED_RESAMPLER,
        feature=Feature.HIDDEN_STATES,
        layer=-2,
        image_dim=1152,
        cross_attention_dim=2432,
        num_tokens=64,
        head_dim=64,
        negative=Negative.ZERO_FEATURES,
        site_dims=(2432,) * 38,
        resampler=ResamplerSpec(
            dim=1280, depth=4, num_heads=20, head_dim=64, ff_dim=5120, num_queries=64, time_dim=320
        ),
        layout="InstantX SD3.5",
        encoder=EncoderHint(kind="SigLIP", image_size=384),
    ),
    "anima_lucifer": AdapterSpec(
        family="Anima LuciferTC",
        projection=Projection.PATCHES,
        image_dim=768,
        cross_attention_dim=768,
        num_tokens=None,
        negative=Negative.ZERO_FEATURES,
        encoder=EncoderHint(kind="SigLIP", image_size=512, crop="pad", padding="black"),
        head_dim=128,
        layout="Anima LuciferTC",
        **ANIMA,
    ),
    "anima_pe": AdapterSpec(layout="Anima PE", **ANIMA_PE),
    "anima_pe_gated": AdapterSpec(layout="Anima PE gated", parts=("ip_centroid",), **ANIMA_PE),
    "z_image": AdapterSpec(family="Z-Image plus", base="Z-Image", backbone="Z-Image", site_dims=(3840,) * 30, **STUDIO),
    "qwen_image": AdapterSpec(
        family="Qwen-Image plus", base="Qwen-Image", backbone="Qwen-Image", site_dims=(3072,) * 60, **STUDIO
    ),
    "kolors_faceid": AdapterSpec(
        family="Kolors FaceID",
        face=face(336, 4096, has_shortcut=True),
        resampler=ResamplerSpec(dim=4096, depth=4, num_heads=64, head_dim=64, ff_dim=16384, num_queries=6),
        num_tokens=6,
        **SDXL | IDENTITY_AND_FACE | KOLORS,
    ),
}
REFUSED = {
    "anima": "an Anima adapter of Wenaka2004's, of the kind that reads SigLIP",
    "anima_intermediate": "an Anima adapter of Wenaka2004's, of the kind that reads SigLIP",
    "anima_qwen": "an Anima adapter of Wenaka2004's, of the kind that reads Qwen3-VL",
    "anima_modulation": "an Anima adapter of Wenaka2004's, of the kind that modulates blocks",
    "instant_character": "an InstantCharacter adapter for FLUX.1",
    "hunyuan_dit": "a HunyuanDiT adapter",
    "infinite_you": "the image projection of InfiniteYou",
}
FOREIGN = {
    "lora": ("a LoRA", "models/loras"),
    "controlnet": ("a ControlNet", "models/controlnet"),
    "t2i_adapter": ("a T2I-Adapter", "models/controlnet"),
    "checkpoint": ("a whole checkpoint", "models/checkpoints"),
    "unet_diffusers": ("a diffusion model", "models/unet"),
    "transformer_flux": ("a diffusion model", "models/diffusion_models"),
    "vae": ("a VAE", "models/vae"),
    "clip_vision": ("an image encoder", "models/clip_vision"),
    "open_clip_visual": ("an image encoder", "models/clip_vision"),
    "textual_inversion": ("a textual inversion embedding", "models/embeddings"),
    "pulid": ("a PuLID adapter", "use the PuLID nodes"),
    "infinite_you_controlnet": ("a ControlNet", "models/controlnet"),
    "uno_lora": ("a UNO or USO LoRA", "models/loras, and load it with Load LoRA (Model and CLIP)"),
    "uso_projector": ("the projector of USO", "models/model_patches; Load Model Patch loads it"),
    "redux": ("a Redux model", "models/style_models; Load Style Model loads it, Apply Style Model applies it"),
    "style_model": ("a style model", "models/style_models"),
    "accelerate_state": ("a raw training state (accelerate)", "export the adapter from it first"),
}
NAMELESS = ("empty", "unknown")


def recognise(shapes: Shapes) -> AdapterSpec:
    return detect({canonical_name(name): shape for name, shape in shapes.items()}, {})


def test_every_published_adapter_has_an_expectation() -> None:
    assert set(PUBLISHED) == {*SUPPORTED, *REFUSED}


@pytest.mark.parametrize("name", SUPPORTED)
def test_supported_adapter_is_read_from_its_shapes(name: str) -> None:
    assert recognise(PUBLISHED[name]()) == SUPPORTED[name]


@pytest.mark.parametrize("name", SUPPORTED)
def test_order_of_the_tensors_in_the_file_decides_nothing(name: str) -> None:
    assert recognise(dict(reversed(PUBLISHED[name]().items()))) == SUPPORTED[name]


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_adapter_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(UnsupportedFamilyError) as caught:
        recognise(PUBLISHED[name]())
    assert re.match(
        rf"Found: this is {REFUSED[name]}: not supported yet( \(.{{20,}}\))?\. Expected: ", str(caught.value)
    )


def test_no_row_of_the_table_is_hidden_by_a_broader_one_above_it() -> None:
    for row in UNSUPPORTED:
        reached = [
            name
            for name in REFUSED
            if next(other for other in UNSUPPORTED if other.matches(_canonical(PUBLISHED[name]()))) is row
        ]
        assert reached, row.name


def test_no_row_of_other_files_is_hidden_by_a_broader_one_above_it() -> None:
    first = {
        next((row.name, row.has) for row, _ in FOREIGN_ROWS if row.matches(_canonical(shapes)))
        for name, shapes in OTHER_FILES.items()
        if name not in NAMELESS and not name.startswith("lora")
    }
    assert {(row.name, row.has) for row, _ in FOREIGN_ROWS} - first == set()


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_be_done_instead_is_said_of_each(name: str) -> None:
    with pytest.raises(UnsupportedFamilyError, match=r"What to do: (use the|choose such|.* or another adapter)"):
        recognise(PUBLISHED[name]())


def test_a_projection_alone_is_infinite_you_s_only_where_it_is_as_wide() -> None:
    whole = PUBLISHED["infinite_you"]() | site_shapes(SDXL_SITES, 4096)
    assert recognise(whole).cross_attention_dim == 4096
    narrow = {name: shape for name, shape in PUBLISHED["sdxl_plus"]().items() if name.startswith("image_proj.")}
    with pytest.raises(UnreadableFileError, match="has image_proj but no ip_adapter"):
        recognise(narrow)


def test_no_supported_adapter_is_taken_for_an_unsupported_one() -> None:
    assert not [
        (name, row.name) for name in SUPPORTED for row in UNSUPPORTED if row.matches(_canonical(PUBLISHED[name]()))
    ]


@pytest.mark.parametrize("name", [name for name in OTHER_FILES if name not in NAMELESS])
def test_other_file_is_named_and_sent_where_it_belongs(name: str) -> None:
    kind, place = FOREIGN[max((prefix for prefix in FOREIGN if name.startswith(prefix)), key=len)]
    with pytest.raises(UnknownCheckpointError) as caught:
        recognise(OTHER_FILES[name])
    assert str(caught.value).startswith(f"Found: this is {kind}, not an IP-Adapter. Expected: ")
    assert place in str(caught.value).partition("What to do: ")[2]


@pytest.mark.parametrize(
    ("shapes", "first_tensors"),
    [
        (OTHER_FILES["unknown"], "head.bias, layer.0.weight"),
        (OTHER_FILES["empty"], "no tensors at all"),
        ({f"t{n}": (1,) for n in range(9)}, "t0, t1, t2, t3, t4"),
    ],
)
def test_unknown_file_is_described_by_its_first_tensors(shapes: Shapes, first_tensors: str) -> None:
    with pytest.raises(UnknownCheckpointError, match=f"an unknown file whose first tensors are {first_tensors}\\."):
        recognise(shapes)


def _canonical(shapes: Shapes) -> Shapes:
    return {canonical_name(name): shape for name, shape in shapes.items()}
