"""Whether a published payload is what `schemas/` says: for every test that sees one."""

import functools
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker

SCHEMAS = Path(__file__).resolve().parent.parent / "schemas"
FORMATS = FormatChecker(())


@FORMATS.checks("date-time", raises=ValueError)
def _is_date_time(value: object) -> bool:
    """RFC 3339; jsonschema's own check needs a package more."""
    return not isinstance(value, str) or ("T" in value and datetime.fromisoformat(value).tzinfo is not None)


def read_schema(name: str) -> dict[str, Any]:
    """A schema by its name, as the user property `schema` gives it."""
    schema = json.loads((SCHEMAS / f"{name}.json").read_text())
    assert isinstance(schema, dict)
    return schema


def validator(name: str) -> Draft202012Validator:
    """What a consumer would use."""
    return Draft202012Validator(read_schema(name), format_checker=FORMATS)


@functools.cache
def strict_validator(name: str) -> Draft202012Validator:
    """As `validator`, and fields that are not described are faults: consumers tolerate those, our own tests do not."""
    schema = read_schema(name)
    shapes = {shape["$ref"] for shape in schema.get("oneOf", []) if "$ref" in shape}
    nested = [part for key, part in schema.get("$defs", {}).items() if f"#/$defs/{key}" not in shapes]
    for part in (schema, *nested):
        part["unevaluatedProperties"] = False
    return Draft202012Validator(schema, format_checker=FORMATS)


def validate_published(schema_name: str, payload: bytes) -> dict[str, Any]:
    """The payload as an object; jsonschema.ValidationError when it is not what the schema of that name says.

    The name is the MQTT 5 user property `schema` of the message.
    """
    published = json.loads(payload)
    strict_validator(schema_name).validate(published)
    assert isinstance(published, dict)
    return published
