"""An adapter gets the image encoder it was trained with, or a message that names need, find and folder."""

import pytest

from ipadapter_core.encoder.choice import check_encoder, choose_encoder, encoder_need, fits
from ipadapter_core.encoder.known import EncoderSpec
from ipadapter_core.errors import MismatchError
from ipadapter_core.file.spec import AdapterSpec, EncoderHint, Feature, Negative, Projection

H = EncoderSpec(kind="CLIP", width=1280, num_layers=32, embed_dim=1024, image_size=224)
BIG_G = EncoderSpec(kind="CLIP", width=1664, num_layers=48, embed_dim=1280, image_size=224)
L = EncoderSpec(kind="CLIP", width=1024, num_layers=24, embed_dim=768, image_size=224)
L_336 = EncoderSpec(kind="CLIP", width=1024, num_layers=24, embed_dim=768, image_size=336)
DINO = EncoderSpec(kind="DINOv2", width=1024, num_layers=24, embed_dim=1024)
DINO_GIANT = EncoderSpec(kind="DINOv2", width=1536, num_layers=40, embed_dim=1536)
SIGLIP = EncoderSpec(kind="SigLIP", width=1152, num_layers=27, embed_dim=None, image_size=378)
SIGLIP_WITH_HEAD = EncoderSpec(kind="SigLIP", width=1152, num_layers=27, embed_dim=1152, image_size=378)
SIGLIP_BASE = EncoderSpec(kind="SigLIP", width=768, num_layers=12, embed_dim=768, image_size=224)
SIGLIP_512 = EncoderSpec(kind="SigLIP", width=768, num_layers=12, embed_dim=768, image_size=512)
CLIP_B = EncoderSpec(kind="CLIP", width=768, num_layers=12, embed_dim=512, image_size=224)
PE = EncoderSpec(kind="PE-Core", width=1024, num_layers=24, embed_dim=None, image_size=336)
FOLDERS = ["/models/clip_vision", "/more/clip_vision"]
NO_HINT = EncoderHint()


def adapter(feature: Feature, image_dim: int, encoder: EncoderHint = NO_HINT) -> AdapterSpec:
    return AdapterSpec(
        family="SD1.5 plus",
        base="SD1.5",
        projection=Projection.LINEAR,
        feature=feature,
        image_dim=image_dim,
        cross_attention_dim=768,
        num_tokens=4,
        site_dims=(320,),
        negative=Negative.ZERO_FEATURES,
        encoder=encoder,
    )


POOLED_1024, POOLED_1280 = adapter(Feature.IMAGE_EMBEDS, 1024), adapter(Feature.IMAGE_EMBEDS, 1280)
HIDDEN_1280, HIDDEN_1024 = adapter(Feature.HIDDEN_STATES, 1280), adapter(Feature.HIDDEN_STATES, 1024)
ALL_FOUND = {"dino": DINO, "g": BIG_G, "siglip": SIGLIP, "h": H}


@pytest.mark.parametrize(
    ("spec", "name"), [(POOLED_1024, "h"), (POOLED_1280, "g"), (HIDDEN_1280, "h"), (HIDDEN_1024, "dino")]
)
def test_the_encoder_whose_output_has_the_right_width_is_chosen(spec: AdapterSpec, name: str) -> None:
    assert choose_encoder(spec, ALL_FOUND, FOLDERS) == name
    assert fits(ALL_FOUND[name], spec)
    check_encoder(ALL_FOUND[name], spec)


def test_clip_goes_before_other_kinds() -> None:
    assert choose_encoder(HIDDEN_1024, {"dino": DINO, "l": L}, FOLDERS) == "l"


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (adapter(Feature.IMAGE_EMBEDS, 1152), "so400m with head"),
        (adapter(Feature.LAST_HIDDEN_STATE, 768, EncoderHint(image_size=512)), "base 512"),
        (adapter(Feature.LAST_HIDDEN_STATE, 1024), "pe"),
        (adapter(Feature.HIDDEN_STATES, 1024), "l"),
        (adapter(Feature.LAST_HIDDEN_STATE, 1024, EncoderHint(kind="CLIP")), "l"),
        (adapter(Feature.LAST_HIDDEN_STATE, 768, EncoderHint(kind="CLIP")), "b"),
    ],
)
def test_the_kind_that_published_adapters_read_goes_before_others(spec: AdapterSpec, name: str) -> None:
    found = {
        "so400m": SIGLIP,
        "so400m with head": SIGLIP_WITH_HEAD,
        "l": L,
        "dino": DINO,
        "pe": PE,
        "b": CLIP_B,
        "base": SIGLIP_BASE,
        "base 512": SIGLIP_512,
    }
    assert choose_encoder(spec, found, FOLDERS) == name


def test_an_encoder_of_another_kind_than_the_adapter_states_does_not_fit() -> None:
    spec = adapter(Feature.LAST_HIDDEN_STATE, 1024, EncoderHint(kind="PE-Core"))
    with pytest.raises(
        MismatchError, match=r"l is CLIP ViT-L/14 .* PE-Core L \(PE-Core-L14-336\), width 1024, 24 layers"
    ):
        choose_encoder(spec, {"l": L, "dino": DINO}, FOLDERS)
    with pytest.raises(MismatchError, match=r"CLIP ViT-L/14 .* which gives 1024-wide last hidden state"):
        check_encoder(L, spec)


def test_of_equal_copies_the_first_is_taken() -> None:
    assert choose_encoder(HIDDEN_1280, {"b": H, "a": H}, FOLDERS) == "b"


def test_several_different_encoders_that_fit_are_left_to_the_user() -> None:
    with pytest.raises(MismatchError) as caught:
        choose_encoder(HIDDEN_1024, {"l": L, "l336": L_336, "dino": DINO}, FOLDERS)
    assert "several image encoders fit SD1.5 plus: l, l336. Expected: one" in str(caught.value)
    assert "choose by its name" in str(caught.value)


@pytest.mark.parametrize(
    ("hint", "name"),
    [
        (EncoderHint(name="dino"), "dino/"),
        (EncoderHint(name="l336"), "l336"),
        (EncoderHint(image_size=336), "l336"),
        (EncoderHint(image_size=224), "l"),
        (EncoderHint(name="renamed", image_size=336), "l336"),
    ],
)
def test_what_the_metadata_says_wins(hint: EncoderHint, name: str) -> None:
    found = {"l": L, "l336": L_336, "dino/": DINO}
    assert choose_encoder(adapter(Feature.HIDDEN_STATES, 1024, hint), found, FOLDERS) == name


def test_an_input_size_that_is_no_multiple_of_the_patch_is_understood() -> None:
    """SigLIP's 27 patches of 14 pixels cover 378 of its 384 pixels."""
    small, large = (
        EncoderSpec(kind="SigLIP", width=1152, num_layers=27, embed_dim=None, image_size=n) for n in (224, 378)
    )
    spec = adapter(Feature.HIDDEN_STATES, 1152, EncoderHint(image_size=384))
    assert choose_encoder(spec, {"small": small, "large": large}, FOLDERS) == "large"


def test_a_named_encoder_that_does_not_fit_is_passed_over() -> None:
    assert choose_encoder(adapter(Feature.HIDDEN_STATES, 1280, EncoderHint(name="g")), ALL_FOUND, FOLDERS) == "h"


def test_where_none_fits_the_message_names_need_find_and_folder() -> None:
    with pytest.raises(MismatchError) as caught:
        choose_encoder(HIDDEN_1280, {"g.safetensors": BIG_G, "dino/": DINO}, FOLDERS)
    found, _, rest = str(caught.value).partition(" Expected: ")
    assert "g.safetensors is CLIP ViT-bigG/14" in found
    assert "dino/ is DINOv2 large" in found
    assert "CLIP ViT-H/14 (CLIP-ViT-H-14-laion2B-s32B-b79K), width 1280, 32 layers: 1280-wide hidden states" in rest
    assert "into /models/clip_vision or /more/clip_vision" in rest


def test_where_nothing_is_found_the_message_says_so() -> None:
    with pytest.raises(MismatchError, match="Found: no image encoder at all"):
        choose_encoder(POOLED_1024, {}, FOLDERS)


@pytest.mark.parametrize(
    ("encoder", "spec", "phrase"),
    [
        (BIG_G, POOLED_1024, "which gives 1280-wide image embeds. Expected: for SD1.5 plus: CLIP ViT-H/14"),
        (BIG_G, HIDDEN_1280, "which gives 1664-wide hidden states. Expected: for SD1.5 plus: CLIP ViT-H/14"),
        (SIGLIP, POOLED_1024, "which gives no image embeds"),
        (DINO_GIANT, POOLED_1280, "DINOv2 giant, which gives 1536-wide image embeds"),
    ],
)
def test_a_connected_encoder_of_another_width_is_refused(encoder: EncoderSpec, spec: AdapterSpec, phrase: str) -> None:
    assert not fits(encoder, spec)
    with pytest.raises(MismatchError) as caught:
        check_encoder(encoder, spec)
    assert phrase in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "need"),
    [
        (POOLED_1280, "CLIP ViT-bigG/14 (CLIP-ViT-bigG-14-laion2B-39B-b160k), width 1664, 48 layers: 1280-wide pooled"),
        (adapter(Feature.IMAGE_EMBEDS, 1152), "SigLIP so400m (siglip-so400m-patch14-384), width 1152, 27 layers: 1152"),
        (
            adapter(Feature.LAST_HIDDEN_STATE, 768),
            "SigLIP 2 base (siglip2-base-patch16-512), width 768, 12 layers: 768",
        ),
        (
            adapter(Feature.LAST_HIDDEN_STATE, 1024),
            "PE-Core L (PE-Core-L14-336), width 1024, 24 layers: 1024-wide last hidden state",
        ),
        (adapter(Feature.LAST_HIDDEN_STATE, 1024, EncoderHint(kind="SigLIP")), "SigLIP: 1024-wide last hidden state"),
        (adapter(Feature.HIDDEN_STATES, 77), "an image encoder: 77-wide hidden states (layer -2)"),
        (adapter(Feature.HIDDEN_STATES, 77, EncoderHint(name="mine")), "mine: 77-wide hidden states"),
    ],
)
def test_the_need_of_an_adapter_in_words(spec: AdapterSpec, need: str) -> None:
    assert encoder_need(spec).startswith(need)
