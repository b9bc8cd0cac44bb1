"""`goip-bridge config check|show|schema`: what the configuration is, and what is wrong with it.

Started by the command line; connects to nothing.
"""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ..config.schema import config_schema
from ..config.settings import ConfigError, Origins, Place, file_named, load, load_with_origins
from ..system.terminal import say, takes_unicode

SECRET = "********"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `main` needs: the action and `--config`."""
    parser.add_argument(
        "action",
        choices=["check", "show", "schema"],
        help="check: name every fault; show: the values in effect and where they come from; "
        "schema: the JSON Schema of the file",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: $GOIP_CONFIG, then ./config.yaml")


def main(args: argparse.Namespace) -> int:
    """Run the action; 0 when it was done, 2 when the configuration has faults."""
    if args.action == "schema":
        say(json.dumps(config_schema(), indent=2, ensure_ascii=not takes_unicode()), lines=True)
        return 0
    try:
        return check(args.config) if args.action == "check" else show(args.config)
    except ConfigError as error:
        for fault in error.faults:
            say(fault, error=True)
        return 2


def check(path: Path | None) -> int:
    """Print a summary of a usable configuration; ConfigError for any other."""
    settings = load(path, os.environ)
    lines = f"{len(settings.lines)} line{'' if len(settings.lines) == 1 else 's'}"
    say(
        f"ok: {file_named(path, os.environ)}: {lines}, broker {settings.mqtt.url or 'embedded'}, gateways at udp://{settings.udp.listen}"
    )
    for note in settings.notes(os.environ):
        say(f"note: {note}")
    return 0


def show(path: Path | None) -> int:
    """Print the values in effect as YAML, secrets hidden, each with where it was given."""
    settings, origins = load_with_origins(path, os.environ)
    for line in _yaml_lines(settings.model_dump(mode="json"), (), origins):
        say(line)
    return 0


def _yaml_lines(values: dict[str, Any], place: Place, origins: Origins) -> Iterator[str]:
    indent = "  " * len(place)
    for key, value in values.items():
        here = (*place, key)
        if isinstance(value, dict) and value:
            yield f"{indent}{_flow(key)}:"
            yield from _yaml_lines(value, here, origins)
            continue
        shown = SECRET if key == "password" and value is not None else value
        yield f"{indent}{_flow(key)}: {_flow(shown)}  # {_origin(here, value, origins)}"


def _flow(value: Any) -> str:
    """The value as YAML in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=takes_unicode(), sort_keys=False, width=10**9)
    return text.removesuffix("\n").removesuffix("\n...")


def _origin(place: Place, value: Any, origins: Origins) -> str:
    """A password may come from its file, and both it and the user name from the url."""
    keys: list[str | int] = [place[-1]]
    if value is not None:
        keys += {"password": ["password_file", "url"], "username": ["url"]}.get(str(place[-1]), [])
    return next((origins[(*place[:-1], key)] for key in keys if (*place[:-1], key) in origins), "default")
