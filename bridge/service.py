"""`goip-bridge run`: the bridge as a process, with its signals, its embedded broker and its exit code."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from bridge import settings as configuration
from bridge.app import Bridge, PortUnusable
from bridge.broker import BrokerError, EmbeddedBroker
from bridge.settings import BrokerUrl, ConfigError, Settings
from bridge.store import Store, StoreError, StoreUnusable

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `goip-bridge run`."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration file (default: ./config.yaml)")
    parser.add_argument("-v", "--verbose", action="store_true", help="log every datagram, by its kind")


def main(args: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT."""
    set_up_logging(verbose=args.verbose)
    try:
        settings = configuration.load(args.config, os.environ)
    except ConfigError as error:
        for fault in error.faults:
            print(fault, file=sys.stderr)  # noqa: T201
        return 2
    for note in settings.notes():
        log.warning("%s", note)

    def reload() -> Settings:
        return configuration.load(args.config, os.environ)

    return asyncio.run(serve(settings, reload))


def set_up_logging(*, verbose: bool = False) -> None:
    """To stderr; systemd and containers add the time themselves, but people at a terminal have only this."""
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stderr)


async def serve(
    settings: Settings, reload: Callable[[], Settings], ready: Callable[[Bridge], None] | None = None
) -> int:
    """Run one bridge to its end; the exit code. Every fault is one readable line."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    broker = EmbeddedBroker() if settings.mqtt.url is None else None
    store = None
    try:
        store = Store(settings.store.path)
        address = settings.mqtt.address
        if broker is not None:
            address = BrokerUrl.parse(await broker.start(settings.store.path.absolute().parent))
            if broker.pid is None:  # amqtt leaves a client that asks for MQTT 5 without an answer
                mqtt = settings.mqtt.model_copy(update={"version": "3.1.1"})
                settings = settings.model_copy(update={"mqtt": mqtt})
        assert address is not None
        bridge = Bridge(settings, store, reload)
        loop.add_signal_handler(signal.SIGHUP, bridge.reload_on_signal)
        if ready is not None:
            ready(bridge)
        await bridge.run(stop, address)
    except (StoreUnusable, BrokerError) as error:
        log.error("%s", error)
        return 1
    except StoreError as error:
        log.error("cannot write %s: %s; free space on its disk, or make it writable", settings.store.path, error)
        return 1
    except PortUnusable as error:
        log.error("%s; check udp.listen and what else uses it", error)
        return 1
    finally:
        if broker is not None:
            await broker.stop()
        if store is not None:
            store.close()
    return 0
