"""The JSON Schemas of `schemas/`, from the code."""
