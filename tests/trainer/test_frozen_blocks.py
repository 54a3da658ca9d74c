"""The layers that `adapter.blocks` leaves out keep what the file to start from has: they act, and are not trained."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ipadapter_core.file.container import read_tensors
from ipadapter_core.network.adapter import load_adapter, save_adapter
from ipadapter_trainer.config import AdapterConfig, Config, EncoderConfig
from ipadapter_trainer.config_file import ConfigError, parse_config
from ipadapter_trainer.files.checkpoint_export import export_checkpoint
from ipadapter_trainer.files.export import export_adapter
from ipadapter_trainer.files.facts import Preprocess, RunCounts, run_facts
from ipadapter_trainer.files.portability import EVERYWHERE
from ipadapter_trainer.loop import train
from ipadapter_trainer.models.image_encoder import ImageEncoder, load_image_encoder
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.models.network import TrainableAdapter, new_adapter
from ipadapter_trainer.planning import make_plan
from ipadapter_trainer.resume.earlier import differences_by_name
from ipadapter_trainer.resume.identify import default_settings
from ipadapter_trainer.resume.identity import RunIdentity
from ipadapter_trainer.run import open_run
from ipadapter_trainer.state import ADAPTER, EMA, CheckpointError, find_checkpoints
from support.tiny_base import around
from support.tiny_unet import diffusers_unet
from support.trained import Trained, diffusers_pipeline
from support.training import make_config, write_pictures
from support.training_states import run_config, tiny_ipadapter

CPU = torch.device("cpu")
FROZEN = {"blocks": "composition", "other_blocks": "frozen"}
Make = Callable[..., Config]


def encoder_of(folder: Path) -> ImageEncoder:
    return load_image_encoder(EncoderConfig(model=str(folder), precision="fp32"), "base", CPU)


@pytest.fixture
def start(tmp_path: Path, base_folder: Callable[..., Path], encoder_folder: Callable[[str], Path]) -> Path:
    """A published file, in float16, whose values no other start has."""
    config = make_config(base_folder(), encoder_folder("clip"), tmp_path, tmp_path)
    base = load_base(config.base, CPU, only=frozenset({"model"}))
    made = new_adapter(AdapterConfig(init="random"), base, encoder_of(encoder_folder("clip")), seed=9)
    save_adapter(made.adapter.half(), tmp_path / "start.safetensors")
    return tmp_path / "start.safetensors"


@pytest.fixture
def config(
    tmp_path: Path, start: Path, base_folder: Callable[..., Path], encoder_folder: Callable[[str], Path]
) -> Make:
    pictures = write_pictures(tmp_path / "pictures", 4)

    def make(run: str = "run", steps: int = 2, **changes: dict[str, Any]) -> Config:
        adapter = {"pretrained": str(start), **FROZEN, **changes.pop("adapter", {})}
        optimizer = {"learning_rate": 0.01, **changes.pop("optimizer", {})}
        settings = {"adapter": adapter, "optimizer": optimizer, "export": {"precision": "fp16"}, **changes}
        settings["train"] = {"steps": steps, **changes.get("train", {})}
        return make_config(base_folder(), encoder_folder("clip"), pictures, tmp_path / run, **settings)

    return make


def other_names(network: TrainableAdapter) -> set[str]:
    """Published names of the tensors of the layers that are not trained."""
    of_sites = {index: set(network.adapter.site(index).state_dict()) for index in network.frozen_sites}
    return {f"ip_adapter.{2 * index + 1}.{name}" for index, names in of_sites.items() for name in names}


def test_other_layers_act_as_they_were_and_take_no_gradient(
    tmp_path: Path, encoder_folder: Callable[[str], Path]
) -> None:
    unet, encoder, path = diffusers_unet("sd15"), encoder_of(encoder_folder("clip")), tmp_path / "start.safetensors"
    first = new_adapter(AdapterConfig(init="random"), around(unet), encoder, seed=5)
    save_adapter(first.adapter, path)
    network = new_adapter(AdapterConfig(pretrained=str(path), **FROZEN), around(unet), encoder, seed=6)  # type: ignore[arg-type]
    assert (len(network.trained_sites), len(network.frozen_sites)) == (2, 14)
    features = {"features": torch.randn(2, network.spec.image_dim)}
    for ours, theirs in zip(network(features).kv, first(features).kv, strict=True):
        assert all(map(torch.equal, ours, theirs))
    pairs = network(features).kv
    sum(pairs[index][1].square().sum() for index in network.frozen_sites).backward()
    others = [network.adapter.site(index) for index in network.frozen_sites]
    assert all(parameter.grad is None for site in others for parameter in site.parameters())
    assert all(parameter.grad.any() for parameter in network.adapter.image_proj.parameters()), (
        "it is trained through them"
    )
    trained = {id(parameter) for parameter in network.trained_parameters()}
    assert not trained.intersection(id(parameter) for site in others for parameter in site.parameters())
    assert len(trained) == len(list(network.parameters())) - 2 * 14


@pytest.mark.long
def test_the_file_has_other_layers_bit_for_bit_and_acts_as_trained(config: Make, start: Path) -> None:
    one = config(optimizer={"ema_decay": 0.5}, validation={"every": 2, "images": 2, "timesteps": [500]})
    train(one)
    run = open_run(one)
    others = other_names(run.network)
    before = read_tensors(start).tensors
    assert len(others) == 28
    for weights in ("average", "trained", "best"):
        report = export_checkpoint(one.run, one.run / f"{weights}.safetensors", weights=weights)  # type: ignore[arg-type]
        after = read_tensors(report.path).tensors
        assert before.keys() == after.keys()
        assert {name for name in before if torch.equal(before[name], after[name])} == others
        assert (report.portability.label, report.portability.reasons) == (EVERYWHERE, ())
    (checkpoint,) = find_checkpoints(one.run)
    assert export_checkpoint(one.run, None).path == one.run / ADAPTER
    loaded = TrainableAdapter(load_adapter(checkpoint / ADAPTER), frozenset(range(run.network.spec.num_sites)))
    run.state.restore(checkpoint)
    features = {"features": torch.randn(2, run.network.spec.image_dim)}
    for ours, theirs in zip(run.network(features).kv, loaded(features).kv, strict=True):
        assert all(map(torch.equal, ours, theirs)), "what was trained with is what the file does"
    pipeline = diffusers_pipeline(Trained(one, Path(one.base.model), Path(one.encoder.model), one.run / ADAPTER))
    sites = [site for site in pipeline.unet.attn_processors.values() if hasattr(site, "to_k_ip")]
    assert len(sites) == run.network.spec.num_sites
    for index in run.network.frozen_sites:
        for name in ("to_k_ip", "to_v_ip"):
            there = getattr(sites[index], name)[0].weight
            assert torch.equal(there, before[f"ip_adapter.{2 * index + 1}.{name}.weight"].to(there))


def test_the_optimiser_and_the_average_have_no_part_in_them(config: Make) -> None:
    one = config(optimizer={"ema_decay": 0.5})
    train(one)
    run = open_run(one)
    count = len(list(run.network.trained_parameters()))
    state = torch.load(find_checkpoints(one.run)[-1] / "rest" / "optimizer.bin", weights_only=False)
    assert len(state["state"]) == len(run.ema.shadow_params) == count
    assert count == len(list(run.network.parameters())) - len(other_names(run.network))


def test_a_resumed_run_equals_an_uninterrupted_one(config: Make) -> None:
    averaged = {"optimizer": {"ema_decay": 0.5}}
    whole = train(config("whole", 3, **averaged))
    train(config("part", 2, **averaged))
    assert train(config("part", 3, **averaged)).losses == whole.losses[2:]
    for file in (ADAPTER, EMA):
        (given, wanted) = (
            read_tensors(find_checkpoints(config(run).run)[-1] / file).tensors for run in ("part", "whole")
        )
        assert all(torch.equal(given[name], wanted[name]) for name in wanted)


def _facts(config: Config) -> RunIdentity:
    return open_run(config).state.identity()


def said(now: RunIdentity, before: RunIdentity) -> Iterator[str]:
    return (one.found for one in now.differences(before, default_settings()))


def test_what_other_layers_are_decides_a_run(config: Make) -> None:
    frozen, zero, all_frozen, every = (
        _facts(config(adapter=adapter))
        for adapter in ({}, {"other_blocks": "zero"}, {"blocks": "all"}, {"blocks": "all", "other_blocks": "zero"})
    )
    assert list(said(frozen, zero)) == ["adapter.other_blocks is 'frozen', was 'zero'"]
    assert list(said(frozen, frozen)) == list(said(zero, zero)) == []
    assert list(said(all_frozen, every)) == [], "there are no others"
    settings = {name: value for name, value in zero.settings.items() if name != "adapter.other_blocks"}
    earlier = replace(zero, settings=settings)  # as it was written before there was a choice
    assert list(said(zero, earlier)) == []
    assert list(said(frozen, earlier)) == ["adapter.other_blocks is 'frozen', was 'zero'"]
    by_name = differences_by_name(frozen, config(), config(adapter={"other_blocks": "zero"}), {"step": 0})
    assert [one.found for one in by_name] == ["adapter.other_blocks is 'frozen', was 'zero'"]


def test_a_run_does_not_go_on_with_other_layers(config: Make) -> None:
    train(config(steps=1))
    with pytest.raises(CheckpointError, match=r"adapter\.other_blocks is 'zero', was 'frozen'"):
        train(config(steps=2, adapter={"other_blocks": "zero"}))


def test_plan_counts_what_is_trained(config: Make) -> None:
    plan, run = make_plan(config()), open_run(config())
    trained = sum(parameter.numel() for parameter in run.network.trained_parameters())
    assert plan.trained["parameters"] == trained
    assert plan.trained["sites"] == "2 of 16 (composition), the others frozen"
    assert plan.memory["gradients"] == 4 * trained
    assert plan.memory["adapter"] == 4 * sum(parameter.numel() for parameter in run.network.parameters())
    assert 8 * trained <= plan.memory["optimizer"] < 8.1 * trained


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        (FROZEN, "trained blocks: composition; the other layers as start.safetensors has them, not trained."),
        ({"blocks": "style"}, "trained blocks: style; the other layers take no image."),
        ({}, "trained blocks: all."),
    ],
)
def test_the_card_says_what_other_layers_are(tmp_path: Path, adapter: dict[str, str], said: str) -> None:
    start = {"pretrained": "/some/where/start.safetensors"}
    facts = run_facts(
        run_config(tmp_path / "run", tmp_path, adapter={**start, **adapter}),
        Preprocess(encoder_kind="CLIP", crop="center", size=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2)),
        RunCounts(step=20, samples=160, uses_ema=False),
    )
    report = export_adapter(tiny_ipadapter(), tmp_path / "a.safetensors", precision="fp16", facts=facts)
    assert said in report.card.read_text()


def test_frozen_layers_need_a_file_that_has_them(config: Make) -> None:
    settings = config().model_dump()
    del settings["adapter"]["pretrained"]
    with pytest.raises(ConfigError, match=r'adapter\.other_blocks = "frozen" needs adapter\.pretrained'):
        parse_config(settings, "test")
