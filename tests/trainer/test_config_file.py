"""A config is read whole, and every mistake gets one line: file, key, what is allowed, nearest name."""

from pathlib import Path

import pytest

from ipadapter_trainer.config import Config
from ipadapter_trainer.config_file import ConfigError, read_config, write_config

MINIMAL = """
[base]
model = "base"
[encoder]
model = "encoder"
[data]
path = "pictures"
[train]
output = "run"
steps = 10
"""


def read(tmp_path: Path, text: str = MINIMAL, overrides: tuple[str, ...] = ()) -> Config:
    path = tmp_path / "c.toml"
    path.write_text(text, encoding="utf-8")
    return read_config(path, overrides)


def test_defaults_are_the_papers(tmp_path: Path) -> None:
    config = read(tmp_path)
    objective = config.objective
    assert (objective.drop_text, objective.drop_image, objective.drop_both) == (0.05, 0.05, 0.05)
    assert (config.optimizer.name, config.optimizer.learning_rate, config.optimizer.weight_decay) == (
        "adamw",
        1e-4,
        0.01,
    )
    assert (config.adapter.kind, config.data.reference, config.data.resolution) == ("base", "self", 512)


def test_written_config_reads_back_equal(tmp_path: Path) -> None:
    config = read(tmp_path, overrides=("validation.timesteps=[1, 2]", "optimizer.clip_norm=2.0", "data.caption=a 'b'"))
    write_config(config, tmp_path / "out.toml")
    assert read_config(tmp_path / "out.toml") == config


@pytest.mark.parametrize("override", ["optimizer.clip_norm=none", 'validation.prompt="none"', "cache.path=none"])
def test_none_can_be_said_and_is_kept(tmp_path: Path, override: str) -> None:
    section, key = override.partition("=")[0].split(".")
    text = MINIMAL + '[cache]\npath = "cache"\n[validation]\nprompt = "a dog"\n'
    config = read(tmp_path, text, (override,))
    assert getattr(getattr(config, section), key) is None
    write_config(config, tmp_path / "out.toml")
    assert read_config(tmp_path / "out.toml") == config
    with pytest.raises(ConfigError, match=r"train\.steps is 'none'"):
        read(tmp_path, overrides=("train.steps=none",))


def test_a_byte_order_mark_is_no_part_of_a_config(tmp_path: Path) -> None:
    (tmp_path / "marked.toml").write_text(MINIMAL, encoding="utf-8-sig")
    assert read_config(tmp_path / "marked.toml") == read(tmp_path)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.steps=7", 7),
        ("train.output=other run", "other run"),
        ('base.model="quoted"', "quoted"),
        ("data.buckets=true", True),
        ("optimizer.learning_rate=1", 1.0),
        ("train.trackers=[]", ()),
    ],
)
def test_overrides(tmp_path: Path, override: str, value: object) -> None:
    section, _, key = override.partition("=")[0].partition(".")
    assert getattr(getattr(read(tmp_path, overrides=(override,)), section), key) == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "optimizer.learning_rte=1",
            r"c.toml: unknown key optimizer.learning_rte. Expected: one of name, learning_rate",
        ),
        ("optimizer.learning_rte=1", r"What to do: write optimizer.learning_rate\."),
        ("learning_rate=1", r"unknown key learning_rate.*write optimizer.learning_rate\."),
        ("train.batchsize=1", r"write train.batch_size\."),
        ("nonsense.x=1", r"unknown key nonsense. Expected: one of base, encoder, data, train.*remove nonsense\."),
        ("data.augment.colour=0.5", r"unknown key data.augment.colour.*write data.augment.color\."),
        ("train.steps=x", r"train.steps is 'x'. Expected: a whole number at least 1"),
        ("train.steps=0", r"train.steps is 0. Expected: a whole number at least 1"),
        ("adapter.tokens=1.5", r"adapter.tokens is 1.5. Expected: a whole number at least 1"),
        ("optimizer.clip_norm=-1", r"optimizer.clip_norm is -1. Expected: a number above 0"),
        ("optimizer.learning_rate=inf", r"learning_rate is inf. Expected: a number above 0"),
        ("validation.strengths=[nan]", r"validation.strengths is nan. Expected: a list"),
        ("optimizer.betas=[0.9, 1.0]", r"optimizer.betas is 1.0. Expected: a list .*below 1"),
        ("train.seed=18446744073709551616", r"train.seed is 18446744073709551616. Expected: a whole number at least 0"),
        ("validation.timesteps=[]", r"validation.timesteps is empty: .*remove validation.every. Expected: a list"),
        ("optimizer.name=adam", r"is 'adam'. Expected: one of adamw, adamw8bit, prodigy, adafactor"),
        ("validation.timesteps=[2000]", r"validation.timesteps is 2000. Expected: a list .*at most 999"),
        (
            "optimizer.schedule=polynomial",
            r'optimizer.schedule = "polynomial", which was the line that "linear" is; write that\. Expected: one of '
            r"constant, linear, cosine .*correct optimizer.schedule\.",
        ),
        ("objective.drop_text=0.95", r"drop_text \+ drop_image \+ drop_both is above 1"),
        ("objective.timestep_max=-1", r"timestep_max is -1. Expected: a whole number at least 0, at most 999"),
        ("data.reference=column", r'data.reference_column and data.reference = "column" belong together'),
        ("data.reference_folder=x", r'data.reference_folder and data.reference = "folder" belong together'),
        ("objective.masked=true", r"objective.masked and data.mask_column belong together"),
        ("validation.best=clip_i", r'validation.best = "clip_i" needs validation.clip_model'),
        ("data={path='x', buckets=true, bucket_step=1024}", r"data.bucket_step is above data.resolution"),
        ("data={path='x', buckets=true, more_resolutions=[32]}", r"data.bucket_step is above data.more_resolutions"),
        ("encoder.feature=hidden_states", r'adapter.kind = "base" reads one embedding, not encoder.feature'),
        ("base=3", r"c.toml: base is 3. Expected: a section \[base\]"),
        ("train.steps.x=1", r"--set train.steps.x=1: steps is a value, no section"),
        ("steps", r"--set steps. Expected: --set section.key=value"),
    ],
)
def test_every_mistake_gets_one_line(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        read(tmp_path, overrides=(override,))
    assert "\n" not in str(error.value)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, MINIMAL.replace("steps = 10", "").replace("path =", "pth ="))
    lines = str(error.value).splitlines()
    assert [line.partition(".toml: ")[2].split(". ")[0] for line in lines] == [
        "data.path is missing",
        "unknown key data.pth",
        "train.steps is missing",
    ]


def test_contradiction_in_the_adapter(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"adapter.tokens has no meaning for kind 'full'"):
        read(tmp_path, overrides=("adapter.kind=full", "adapter.tokens=4"))


@pytest.mark.parametrize(("text", "message"), [("[base", "is not TOML"), (None, "cannot be read")])
def test_unreadable_files(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "c.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(path)


def test_a_config_says_only_what_differs_from_the_one_it_extends(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "first.toml").write_text(
        MINIMAL + '[data.augment]\nflip = 0.5\nblur = 0.25\n[cache]\npath = "c"\n'
    )
    (tmp_path / "second.toml").write_text(
        'extends = "shared/first.toml"\n[train]\nsteps = 20\n[data.augment]\nblur = 0.5\n'
    )
    (tmp_path / "third.toml").write_text('extends = "second.toml"\n[train]\nseed = 3\n')
    config = read_config(tmp_path / "third.toml", ["train.batch_size=2"])
    assert (config.train.steps, config.train.seed, config.train.batch_size) == (20, 3, 2)
    assert (config.data.augment.flip, config.data.augment.blur, config.cache.path) == (0.5, 0.5, "c")
    write_config(config, tmp_path / "whole.toml")
    assert "extends" not in (tmp_path / "whole.toml").read_text()
    assert read_config(tmp_path / "whole.toml") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extends = "gone.toml"', r"c\.toml extends .*gone\.toml, but .*gone\.toml cannot be read"),
        ('extends = "c.toml"', r"c\.toml extends itself: c\.toml -> c\.toml"),
        ('extends = "back.toml"', r"extends itself: c\.toml -> back\.toml -> c\.toml"),
        ("extends = 3", r"c\.toml: extends is 3\. Expected: the path of another config"),
        ('extends = "wrong.toml"', r"c\.toml: unknown key train\.stepz"),
    ],
)
def test_what_a_config_extends_has_to_be_one(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    (tmp_path / "back.toml").write_text('extends = "c.toml"')
    (tmp_path / "wrong.toml").write_text(MINIMAL.replace("steps = 10", "steps = 10\nstepz = 3"))
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / "c.toml")
