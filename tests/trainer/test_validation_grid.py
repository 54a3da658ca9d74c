"""Validation: the same numbers as a loop over single cells, at any batch size and share, and nothing else disturbed."""

from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from ipadapter_core.errors import BadInputError
from ipadapter_trainer.batch import Batch
from ipadapter_trainer.config import AdapterConfig, BaseModelConfig, EncoderConfig, ObjectiveConfig
from ipadapter_trainer.draws import sample_generator
from ipadapter_trainer.models.image_encoder import load_image_encoder
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.models.network import TrainableAdapter, new_adapter
from ipadapter_trainer.objective import Condition, Objective
from ipadapter_trainer.watch.validation import ValidationGrid, build_grid, validate
from support.encoders import write_folder
from support.tiny_base import write_base

CPU = torch.device("cpu")
TIMESTEPS = (100, 700)
SEED = 5
SIZES = ((8, 8), (8, 8), (8, 12), (8, 8), (8, 12))


@pytest.fixture(scope="module", params=["sd15", pytest.param("sdxl", marks=pytest.mark.long)])
def objective(request, tmp_path_factory) -> Objective:
    folder = write_base(tmp_path_factory.mktemp(request.param), request.param)
    base = load_base(BaseModelConfig(model=str(folder), precision="fp32"), CPU)
    base.install()
    return Objective(ObjectiveConfig(min_snr_gamma=5.0), base, {"features": torch.zeros(1, 20)})


@pytest.fixture(scope="module")
def adapter(objective, tmp_path_factory) -> TrainableAdapter:
    folder = tmp_path_factory.mktemp("clip")
    write_folder("clip", folder)
    encoder = load_image_encoder(EncoderConfig(model=str(folder), precision="fp32"), "base", CPU)
    return new_adapter(AdapterConfig(init="random"), objective.base, encoder)


def _batch(size: tuple[int, int], number: int, **more) -> Batch:
    generator = torch.Generator().manual_seed(number)
    latents = torch.randn(1, 4, *size, generator=generator)
    return Batch(
        positions=(number,),
        keys=(str(number),),
        captions=(f"picture {number}",),
        drop_image=torch.ones(1, dtype=torch.bool),
        latent_noise=torch.ones_like(latents),
        noise=torch.ones_like(latents),
        times=torch.tensor([0.999]),
        sizes=torch.tensor([[64.0, 64, 0, 0, 64, 64]]),
        latent_mean=latents,
        latent_std=torch.ones_like(latents),
        features={"features": torch.randn(1, 20, generator=generator)},
        **more,
    )


def _batches(**more) -> list[Batch]:
    return [_batch(size, number, **more) for number, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def grid(objective) -> ValidationGrid:
    return build_grid(_batches(), objective, timesteps=TIMESTEPS, seed=SEED)


def _by_hand(objective: Objective, adapter: TrainableAdapter) -> Tensor:
    """Mean squared error of single cells, weighted, (kind, picture, timestep)."""
    base, batches = objective.base, _batches()
    table = torch.zeros(3, len(SIZES), len(TIMESTEPS))
    for picture, batch in enumerate(batches):
        other = batches[(picture + 2) % 5]
        latents = batch.latent_mean * base.vae.config.scaling_factor
        text = base.encode_text(batch.captions)
        for column, timestep in enumerate(TIMESTEPS):
            noise = torch.randn(
                latents.shape, generator=sample_generator(SEED, picture * 1000 + timestep, "validation")
            )
            kept = base.schedule.alphas_cumprod[timestep]
            noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
            condition = Condition(latents, text, batch.sizes, batch.features)
            for kind, features in enumerate((batch.features, {"features": torch.zeros(1, 20)}, other.features)):
                with torch.no_grad():
                    predicted = objective.predict(adapter(features), condition, noisy, torch.tensor([timestep / 1000]))
                snr = kept / (1 - kept)
                table[kind, picture, column] = (predicted - noise).square().mean() * snr.clamp_max(5) / snr
    return table


def test_equals_a_loop_over_single_cells(grid, objective, adapter):
    table = _by_hand(objective, adapter)
    losses = validate(grid, adapter, objective, batch_size=3)
    assert [losses.true, losses.null, losses.shuffled] == pytest.approx(table.mean(dim=(1, 2)).tolist(), rel=1e-5)
    assert losses.gap_null == pytest.approx((table[1] - table[0]).mean().item(), abs=1e-6)
    assert losses.gap_shuffled == pytest.approx((table[2] - table[0]).mean().item(), abs=1e-6)
    assert losses.per_timestep == pytest.approx(
        dict(zip(TIMESTEPS, table[0].mean(dim=0).tolist(), strict=True)), rel=1e-5
    )
    by_picture = (table[2] - table[0]).mean(dim=1)
    assert losses.gap_error == pytest.approx((by_picture.std() / 5**0.5).item(), rel=1e-3)
    assert losses.pictures == 5
    assert abs(losses.gap_shuffled) > 1e-6


@pytest.mark.parametrize("batch_size", [1, 64])
def test_batch_size_changes_nothing(grid, objective, adapter, batch_size):
    expected, losses = (validate(grid, adapter, objective, batch_size=size) for size in (3, batch_size))
    assert losses.true == pytest.approx(expected.true, rel=1e-6)
    assert losses.gap_shuffled == pytest.approx(expected.gap_shuffled, abs=1e-6)


def test_processes_share_the_cells_and_make_the_same_number_of_forwards(grid, objective, adapter):
    parts: list[Tensor] = []
    forwards = []
    for rank in range(2):
        calls: list[object] = []
        handle = adapter.register_forward_hook(lambda *_, calls=calls: calls.append(None))
        validate(
            grid,
            adapter,
            objective,
            batch_size=4,
            rank=rank,
            world_size=2,
            total=lambda x: parts.append(x.clone()) or x,
        )
        handle.remove()
        forwards.append(len(calls))
    alone: list[Tensor] = []
    validate(grid, adapter, objective, batch_size=4, total=lambda x: alone.append(x.clone()) or x)
    assert len(set(forwards)) == 1
    assert torch.equal(sum(parts), alone[0])
    assert all((part != 0).any() for part in parts)


def test_draws_nothing_and_leaves_the_mode(grid, objective, adapter):
    adapter.train()
    before = torch.get_rng_state()
    first = validate(grid, adapter, objective, batch_size=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert adapter.training
    torch.manual_seed(99)
    assert asdict(validate(grid, adapter, objective, batch_size=3)) == asdict(first)


def test_keeps_the_grid_off_the_device_without_sampling_or_dropping(grid):
    first = grid.pictures[0]
    assert torch.equal(first.latents, _batch(SIZES[0], 0).latent_mean * 0.18215)
    assert torch.equal(first.features["features"], _batch(SIZES[0], 0).features["features"])
    assert all(picture.latents.device == CPU for picture in grid.pictures)


def test_masks_of_the_loss_count(grid, objective, adapter):
    half = torch.zeros(1, 1, 8, 8)
    half[..., :4] = 1
    batches = [_batch((8, 8), number, loss_mask=half) for number in range(3)]
    masked = build_grid(batches, objective, timesteps=TIMESTEPS, seed=SEED)
    plain = build_grid([_batch((8, 8), number) for number in range(3)], objective, timesteps=TIMESTEPS, seed=SEED)
    losses = [validate(made, adapter, objective, batch_size=4).true for made in (masked, plain)]
    assert losses[0] != pytest.approx(losses[1], rel=1e-6)


def test_one_picture_has_no_wrong_reference(objective):
    with pytest.raises(BadInputError, match="at least 2"):
        build_grid(_batches()[:1], objective, timesteps=TIMESTEPS, seed=SEED)
