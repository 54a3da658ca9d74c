"""`ipadapter plan`."""

from .options import AsJson, ConfigPath, Overrides, same_config
from .output import emit


def plan(config: ConfigPath, overrides: Overrides = [], as_json: AsJson = False) -> None:  # noqa: B006 - typer's way
    """Say what a config would train, what it needs and how long it takes, from three real steps; writes nothing.

    Example: `ipadapter plan my.toml --set train.batch_size=16`
    """
    from ..config_file import read_config

    settings = read_config(config, overrides)  # before the libraries, which take their time: a mistake shows at once

    import torch

    from ..plan_words import plan_in_words
    from ..planning import make_plan

    made = make_plan(settings).to_json()
    memory = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    file = same_config(config, overrides)
    emit(made if as_json else plan_in_words(made, settings, memory=memory, file=file), as_json)
