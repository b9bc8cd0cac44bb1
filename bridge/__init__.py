"""A bridge between GoIP GSM gateways and MQTT."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("goip-mqtt-bridge")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
