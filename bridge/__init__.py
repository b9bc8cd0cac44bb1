"""A bridge between GoIP GSM gateways and MQTT."""


def __getattr__(name: str) -> str:
    """`__version__`, when somebody asks: looking it up is a third of what the supervisor would need."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("goip-mqtt-bridge")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0+unknown"
