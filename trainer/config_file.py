"""Reading a training config: TOML, `--set` overrides, and one line per mistake."""

import difflib
import errno
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ipadapter_core.errors import IPAdapterError

from .config import Config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


_NONE = "none"
"""TOML has no null: this unsets what may be left out."""


class ConfigError(IPAdapterError):
    """A training config with a wrong key or value."""


class SeveralMistakesError(ConfigError):
    """More than one, a line each."""

    def __init__(self, mistakes: Sequence[ConfigError]) -> None:
        ValueError.__init__(self, "\n".join(map(str, mistakes)))


def read_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file, what it extends before it, and apply `a.b=value` overrides, whose values are TOML, or plain text
    where that is no TOML.

    Raises:
        ConfigError: a file is missing or no TOML, or a key or value is wrong; one line per mistake.
    """
    data = _read_extended(path, ())
    for override in overrides:
        _apply(data, override)
    return parse_config(data, path.name)


def _read_extended(path: Path, extending: tuple[Path, ...]) -> dict[str, Any]:
    """The tables of a file, laid over those of the file that its `extends` names, if it does."""
    chain = (*extending, path)
    if _resolved(path) in map(_resolved, extending):
        raise ConfigError(
            f"{chain[0].name} extends itself: {' -> '.join(other.name for other in chain)}",
            expected="a config that stands on another one",
            action="take one extends out",
        )
    try:
        data = _read_toml(path)
    except ConfigError as error:
        if not extending:
            raise
        raise ConfigError(
            f"{extending[-1].name} extends {path}, but {error.found}",
            expected="the path of another config, from the folder of the one that names it",
            action="correct extends",
        ) from error
    extended = data.pop("extends", None)
    if extended is None:
        return data
    if not isinstance(extended, str):
        raise ConfigError(
            f"{path.name}: extends is {extended!r}", expected="the path of another config", action="correct extends"
        )
    return _laid_over(_read_extended(path.parent / extended, chain), data)


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):  # links in a ring, or a NUL: reading it says so
        return path


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Tables of both, key by key; where both have a value, the upper one."""
    both = {name: (below[name], above[name]) for name in below.keys() & above.keys()}
    inner = {
        name: _laid_over(*pair) for name, pair in both.items() if all(isinstance(value, Mapping) for value in pair)
    }
    return {**below, **above, **inner}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file() and not path.is_dir() and path.exists():  # would not come to an end
            raise OSError(errno.EINVAL, "a pipe or a device, no file")
        text = path.read_text(encoding="utf-8-sig")  # Windows' Notepad puts a mark first
    except (OSError, ValueError) as error:  # or a NUL in the name
        if isinstance(error, UnicodeDecodeError):
            raise _no_toml(path, error) from error
        raise ConfigError(
            f"{path} cannot be read ({error.strerror if isinstance(error, OSError) else error})",
            expected="a TOML file",
            action="name an existing config; the shipped ones are in trainer/configs",
        ) from error
    try:
        values = tomllib.loads(text)
        json.dumps(values, default=str)  # as `parse_config` does
    except RecursionError as error:
        raise _no_toml(path, "nested too deep") from error
    except ValueError as error:  # a number of too many digits as well
        raise _no_toml(path, error) from error
    return values


def _no_toml(path: Path, why: object) -> ConfigError:
    return ConfigError(
        f"{path} is not TOML ({why})", expected='lines like batch_size = 8 or model = "name"', action="correct it"
    )


def parse_config(data: Mapping[str, object], source: str) -> Config:
    """A config from nested mappings, as a TOML file or a checkpoint holds them. Raises ConfigError as `read_config`."""
    try:
        # by way of JSON, whose lists pydantic takes for tuples although it is strict about everything else
        return Config.model_validate_json(json.dumps(_unset(data, Config), default=str))
    except ValidationError as error:
        raise _explain(error, source) from error


def write_config(config: Config, path: Path) -> None:
    """Write every value, the defaults too, as TOML that `read_config` reads back."""
    path.write_text(tomli_w.dumps(_written(config)), encoding="utf-8")


def _unset(data: Mapping[str, object], section: type[BaseModel]) -> dict[str, object]:
    values = dict(data)
    for name, field in section.model_fields.items():
        value = values.get(name)
        if _is_section(field.annotation) and isinstance(value, Mapping):
            values[name] = _unset(value, cast(type[BaseModel], field.annotation))
        elif (of_each := _listed_section(field.annotation)) and isinstance(value, list | tuple):
            values[name] = [_unset(one, of_each) if isinstance(one, Mapping) else one for one in value]
        elif value == _NONE and type(None) in get_args(field.annotation):
            values[name] = None
    return values


def _written(section: BaseModel) -> dict[str, object]:
    """Values by key; none is left out where it is the default, and else a word."""
    values = section.model_dump(mode="json", exclude_none=True)
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            values[name] = _written(value)
        elif value is None and field.default is not None:
            values[name] = _NONE
    return values


def _apply(data: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    *sections, key = name.strip().split(".")
    if not equals or not all((*sections, key)):
        raise ConfigError(
            f"--set {override}", expected="--set section.key=value", action="write for instance --set train.steps=1000"
        )
    try:
        value: object = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise ConfigError(
                f"--set {override}: {section} is a value, no section", expected="section.key", action="check the name"
            )
    data[key] = value


def _explain(error: ValidationError, source: str) -> ConfigError:
    mistakes = [_mistake(problem, source) for problem in error.errors(include_url=False)]
    return mistakes[0] if len(mistakes) == 1 else SeveralMistakesError(mistakes)


def _mistake(problem: Mapping[str, Any], source: str) -> ConfigError:
    location = [part for part in problem["loc"] if isinstance(part, str)]
    name = ".".join(location) or "the config"
    if problem["type"] == "extra_forbidden":
        names = _names(location[:-1])
        close = difflib.get_close_matches(location[-1], names, n=1) or [n for n in names if location[-1] in n][:1]
        elsewhere = [full for full in _all_names() if full.rpartition(".")[2] == location[-1]]
        nearest = [".".join((*location[:-1], key)) for key in close] + elsewhere
        hint = f"write {nearest[0]}" if nearest else f"remove {name}"
        return ConfigError(f"{source}: unknown key {name}", expected=f"one of {', '.join(names)}", action=hint)
    if problem["type"] == "missing":
        return ConfigError(f"{source}: {name} is missing", expected=_allowed(location), action=f"add {name}")
    field = _field(location)
    if problem["type"] == "value_error" and (field is None or _is_section(field.annotation)):
        return ConfigError(
            f"{source}: {problem['ctx']['error']}", expected="settings that go together", action="change one of them"
        )
    said = problem["ctx"]["error"] if problem["type"] == "value_error" else f"{name} is {problem['input']!r}"
    return ConfigError(f"{source}: {said}", expected=_allowed(location), action=f"correct {name}")


def _field(location: Sequence[str]) -> FieldInfo | None:
    model: type[BaseModel] = Config
    field = None
    for part in location:
        field = model.model_fields.get(part)
        annotation = field.annotation if field else None
        annotation = _listed_section(annotation) or annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return field


def _names(sections: Sequence[str]) -> list[str]:
    field = _field(sections)
    model = (_listed_section(field.annotation) or field.annotation) if field else Config
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _all_names(sections: tuple[str, ...] = ()) -> list[str]:
    names = []
    for name in _names(sections):
        inner = _all_names((*sections, name))
        names += inner or [".".join((*sections, name))]
    return names


def _allowed(location: Sequence[str]) -> str:
    """What a field takes, in words."""
    field = _field(location)
    if field is None:
        return "a section"
    if _is_section(field.annotation):
        return f"a section [{'.'.join(location)}]"
    options, kinds, limits = _parts(field.annotation, field.metadata)
    what = f"one of {', '.join(options)}" if options else f"{' or '.join(kinds)} {', '.join(limits)}".strip()
    meaning = " ".join((field.description or "").split()).rstrip(".")  # its lines are the code's
    return f"{what} ({meaning})"


def _parts(annotation: Any, metadata: Sequence[object] = ()) -> tuple[list[str], list[str], list[str]]:
    """Literal options, kinds and limits of a type, through unions, tuples and Annotated."""
    options, kinds = [], [_KINDS[annotation]] if annotation in _KINDS else []
    limits = [
        f"{word} {value}"
        for limit in _flattened(metadata)
        for mark, word in _LIMITS.items()
        if (value := getattr(limit, mark, None)) is not None
    ]
    if get_origin(annotation) is tuple:
        kinds.append("a list")
    for argument in get_args(annotation):
        if isinstance(argument, str):
            options.append(argument)
            continue
        inner = _parts(argument, getattr(argument, "__metadata__", ()))
        options += inner[0]
        kinds += inner[1] if get_origin(annotation) is not tuple else []
        limits += inner[2]
    return options, kinds, limits


def _flattened(metadata: Sequence[object]) -> list[object]:
    return [inner for one in metadata for inner in (one.metadata if isinstance(one, FieldInfo) else [one])]


def _listed_section(annotation: object) -> type[BaseModel] | None:
    """The section that a list of sections is made of."""
    inner = get_args(annotation)[:1] if get_origin(annotation) is tuple else ()
    return inner[0] if inner and _is_section(inner[0]) else None


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


_KINDS: dict[object, str] = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false"}
_LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "multiple_of": "a multiple of"}
