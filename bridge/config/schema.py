"""The JSON Schema of the configuration file."""

from typing import Any

from .settings import Settings


def config_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the configuration file, for editors."""
    schema = Settings.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        section.pop("title", None)
        for value in section.get("properties", {}).values():
            value.pop("title", None)
            if "$ref" in value:
                value.pop("default", None)  # says again what the section says key by key
            if "patternProperties" in value:
                value["additionalProperties"] = False
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "config", **schema}
