"""YAML and environment to settings."""
