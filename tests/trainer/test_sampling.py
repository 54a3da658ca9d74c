"""Pictures drawn from an adapter: those of diffusers with the same file, and those of the base at strength 0."""

import gc
import weakref
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from ipadapter_core.errors import BadInputError
from ipadapter_core.strength.site import SiteStrength
from ipadapter_trainer.backbones.image_prompt import ImagePrompt
from ipadapter_trainer.config import AdapterConfig, BaseModelConfig, EncoderConfig
from ipadapter_trainer.models.image_encoder import load_image_encoder
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.models.network import new_adapter
from ipadapter_trainer.readers.pictures import PictureReader
from ipadapter_trainer.watch.contact_sheet import contact_sheet, save_grid
from ipadapter_trainer.watch.sampling import (
    Sampler,
    SampleSettings,
    encode_prompt,
    encode_reference,
    guided,
    sample_grid,
)
from support.encoders import write_folder
from support.tiny_base import write_base

CPU = torch.device("cpu")
SETTINGS = SampleSettings(strengths=(0.0, 0.5, 1.0), steps=3, guidance=3.0, size=(64, 48), batch_size=2, seed=7)


class Setting:
    """A base on disk and in memory, an encoder, an adapter and two references."""

    def __init__(self, layout, kind, make_folder) -> None:
        self.folder = write_base(make_folder("base"), layout)
        self.base = load_base(BaseModelConfig(model=str(self.folder), precision="fp32"), CPU)
        self.base.install()
        encoder_folder = make_folder("encoder")
        write_folder("clip", encoder_folder)
        self.encoder = load_image_encoder(EncoderConfig(model=str(encoder_folder), precision="fp32"), kind, CPU)
        config = AdapterConfig(kind=kind, init="random", resampler_dim=64 if kind == "plus" else None)
        self.adapter = new_adapter(config, self.base, self.encoder, seed=3)
        with torch.no_grad():
            for index in range(self.adapter.spec.num_sites):  # strong enough to be seen
                self.adapter.adapter.site(index).to_v_ip.weight.mul_(30)
        self.reader = PictureReader(self.encoder)
        self.no_image = self.reader.no_image(self.adapter.spec.negative)
        pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 30, 3), dtype=np.uint8)
        self.references = [
            encode_reference(Image.fromarray(each), f"picture {i}.png", base=self.base, reader=self.reader, prompt=text)
            for i, (each, text) in enumerate(zip(pixels, ("", "a red cat"), strict=True))
        ]

    def grid(self, settings=SETTINGS, negative="ugly"):
        sampler = Sampler(self.base, settings, encode_prompt(self.base, negative))
        return sample_grid(sampler, self.adapter, self.no_image, self.references, settings_progress.append)


settings_progress: list[int] = []


@pytest.fixture(scope="module", params=[("sd15", "base"), ("sdxl", "plus")], ids=lambda param: "-".join(param))
def setting(request, tmp_path_factory) -> Setting:
    return Setting(*request.param, tmp_path_factory.mktemp)


@pytest.fixture(scope="module")
def grid(setting):
    return setting.grid()


def _by_diffusers(setting, place, strength):
    """The picture of a reference by diffusers' own IP-Adapter, or by the plain pipeline at strength None."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(setting.folder)
    pipeline.set_progress_bar_config(disable=True)
    more = {}
    if strength is not None:
        state = {"image_proj": {}, "ip_adapter": {}}
        for name, tensor in setting.adapter.adapter.state_dict().items():
            part, _, key = name.partition(".")
            state[part][key] = tensor
        pipeline.load_ip_adapter(state, subfolder=None, weight_name=None, image_encoder_folder=None)
        pipeline.set_ip_adapter_scale(strength)
        features = torch.cat((setting.no_image["features"], setting.references[place].features["features"]))
        more["ip_adapter_image_embeds"] = [features[:, None]]
    return pipeline(
        setting.references[place].prompt,
        negative_prompt="ugly",
        width=64,
        height=48,
        num_inference_steps=3,
        guidance_scale=3.0,
        latents=Sampler(setting.base, SETTINGS, encode_prompt(setting.base, "ugly")).noise(place, 0),
        output_type="np",
        **more,
    ).images[0]


def _array(pictures):
    return np.array(pictures, dtype=np.float64) / 255


def _same(one, other):
    """Up to one step of 8 bits: sums of a batch come in another order."""
    return np.abs(_array(one) - _array(other)).max() < 1.5 / 255


def test_strength_0_is_the_base_alone_bit_for_bit(setting):
    rows = setting.grid(replace(SETTINGS, strengths=(0.0,), batch_size=1)).rows
    for place, (picture,) in enumerate(rows):
        expected = (_by_diffusers(setting, place, None) * 255).round().astype(np.uint8)
        assert np.array_equal(np.asarray(picture), expected)


@pytest.mark.parametrize(("place", "column"), [(0, 2), (1, 1)])
def test_equals_diffusers_own_ip_adapter(setting, grid, place, column):
    expected = _by_diffusers(setting, place, SETTINGS.strengths[column])
    difference = np.abs(_array(grid.rows[place][column]) - expected).max()
    assert difference < 0.5 / 255 + 1e-4  # half a step of 8 bits
    assert np.abs(expected - _array(grid.rows[place][0])).max() > 4 / 255


def test_every_picture_has_its_own_noise_whatever_the_batch(setting, grid):
    assert _same(setting.grid(replace(SETTINGS, batch_size=1)).rows, grid.rows)
    twice = setting.grid(replace(SETTINGS, count=2, strengths=(0.0,)))
    assert [reference.name for reference in twice.references] == ["picture 0.png"] * 2 + ["picture 1.png"] * 2
    assert _same(twice.rows[2][0], grid.rows[1][0])
    assert not _same(twice.rows[0][0], twice.rows[1][0])


def test_draws_nothing_from_the_global_generators_and_reports_progress(setting):
    before = torch.get_rng_state()
    settings_progress.clear()
    setting.grid()
    assert torch.equal(torch.get_rng_state(), before)
    assert sum(settings_progress) == 2 * 3 * 3  # references, strengths, steps


def test_keeps_nothing_alive_that_a_run_frees(tmp_path):
    base = load_base(BaseModelConfig(model=str(write_base(tmp_path)), precision="fp32"), CPU)
    base.install()
    encoder = weakref.ref(base.pipeline.text_encoder)
    text = encode_prompt(base, "a red cat")
    sampler = Sampler(base, SETTINGS, text)
    base.release(frozenset({"text", "vae"}))
    gc.collect()
    assert encoder() is None
    nothing = ImagePrompt((None,) * 16)
    assert sampler.draw(sampler.noise(0, 0), [text], lambda times: nothing)[0].size == (64, 48)


def test_without_guidance_there_is_no_uncond_half(setting):
    settings = replace(SETTINGS, guidance=1.0, strengths=(0.0, 1.0))
    (plain, full), _ = setting.grid(settings).rows
    assert not _same(plain, full)
    assert _same(setting.grid(settings, negative="ignored").rows[0][1], full)


def test_guided_lays_uncond_before_cond_and_leaves_out_sites_at_0():
    uncond = ImagePrompt(((torch.full((1, 2, 4), 1.0), torch.full((1, 2, 4), 2.0)),) * 3)
    cond = ImagePrompt(((torch.full((3, 2, 4), 3.0), torch.full((3, 2, 4), 4.0)),) * 3)
    strengths = {0: SiteStrength(0.5), 1: SiteStrength(0.0), 2: SiteStrength(1.0, swap=True)}
    plain, off, swapped = guided(uncond, cond, strengths).kv
    assert off is None
    assert plain[0][:, 0, 0].tolist() == [1, 1, 1, 3, 3, 3]
    assert plain[1][:, 0, 0].tolist() == [1, 1, 1, 2, 2, 2]
    assert swapped[0][:, 0, 0].tolist() == [3, 3, 3, 0, 0, 0]
    assert swapped[1][:, 0, 0].tolist() == [4, 4, 4, 0, 0, 0]


def test_layer_presets_change_the_picture(setting, grid):
    styled = setting.grid(replace(SETTINGS, blocks="style"))
    assert _same(styled.rows[0][0], grid.rows[0][0])
    assert not _same(styled.rows[0][2], grid.rows[0][2])


def test_sheet_shows_every_picture(grid, tmp_path):
    paths = save_grid(grid, tmp_path / "out")
    assert [path.name for path in paths[:3]] == [
        "sheet.png",
        "00-picture_0-strength-0.png",
        "00-picture_0-strength-0.5.png",
    ]
    assert len(paths) == 1 + 2 * 3
    assert all(Image.open(path).size == (64, 48) for path in paths[1:])
    sheet = contact_sheet(grid)
    assert sheet.size == Image.open(paths[0]).size == (4 * 264 + 8, 28 + 2 * 288 + 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (60, 64)}, "multiples of 8"),
        ({"steps": 0}, "0 sampling steps"),
        ({"guidance": 0.5}, "guidance 0.5"),
        ({"strengths": ()}, "no strength"),
        ({"count": 0}, "0 pictures"),
        ({"blocks": "stile"}, "layer preset 'stile'"),
    ],
)
def test_bad_settings_are_named(setting, change, message):
    with pytest.raises(BadInputError, match=message):
        setting.grid(replace(SETTINGS, **change))
