"""The bridge as a process: signals, embedded broker, exit code. bridge/process/supervisor.py starts it."""

import argparse
import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable

from ..app.bridge import Bridge, Listener, PortUnusable
from ..config import settings as configuration
from ..config.settings import BrokerUrl, ConfigError, Settings
from ..http import status
from ..retained.recent import Recent
from ..store.database import Store, StoreError, StoreUnusable
from ..system.terminal import ControllingTerminal, say
from ..system.udp import UdpSocket
from .embedded_broker import BrokerError, EmbeddedBroker
from .health import HealthSocket, socket_path
from .keeper import CLOSED, RESTART, Keeper

log = logging.getLogger(__name__)


def main(args: argparse.Namespace, keeper: Keeper) -> int:
    """Run until SIGTERM or SIGINT."""
    try:
        settings = configuration.load(args.config, os.environ)
    except ConfigError as error:
        for fault in error.faults:
            say(fault, error=True)
        return 2
    log.info("configuration: %s", configuration.file_named(args.config, os.environ))
    for note in settings.notes(os.environ):
        log.warning("%s", note)

    def reload() -> Settings:
        return configuration.load(args.config, os.environ)

    return asyncio.run(serve(settings, reload, keeper))


async def serve(settings: Settings, reload: Callable[[], Settings], keeper: Keeper) -> int:
    """Run one bridge to its end; the exit code. Every fault is one readable line."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    if keeper.lifeline is not None:
        loop.add_reader(keeper.lifeline, os._exit, 1)
    # The supervisor minds the terminal for its worker.
    terminal = ControllingTerminal() if keeper.lifeline is None else None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def stop_with_terminal() -> None:
        log.warning("%s", CLOSED)
        stop.set()

    def look_at_terminal() -> None:
        if terminal is not None and terminal.look():
            stop_with_terminal()
        elif terminal is not None and terminal.watched:
            loop.call_later(terminal.LOOK_S, look_at_terminal)

    def serving(udp: UdpSocket) -> None:
        keeper.serving(udp.socket)
        say_alive()

    def say_alive() -> None:
        """From within the event loop: when it hangs, nothing is said."""
        if keeper.alive_s is not None:
            keeper.alive()
            loop.call_later(keeper.alive_s, say_alive)

    broker = EmbeddedBroker() if settings.mqtt.url is None else None
    store = None
    try:
        store = Store(settings.store.path, ballast=True)
        address = settings.mqtt.address
        if broker is not None:
            address = BrokerUrl.parse(await broker.start(settings.store.path.absolute().parent))
        assert address is not None
        bridge = Bridge(settings, store, reload)
        if broker is not None and broker.pid is None:
            bridge.mqtt_version = "3.1.1"  # amqtt leaves a client that asks for MQTT 5 without an answer

        def hang_up() -> None:
            if terminal is not None and terminal.hung_up():
                stop_with_terminal()
            else:
                bridge.reload_on_signal()

        loop.add_signal_handler(signal.SIGHUP, hang_up)
        look_at_terminal()
        bridge.can_restart = keeper.restarts
        bridge.make_listener = make_listener
        health = HealthSocket(socket_path(settings.store.path), lambda: status.healthy(bridge))
        health.start()
        try:
            await bridge.run(stop, address, keeper.held, serving)
        finally:
            health.close()
        log.info("stopped")
        if bridge.restart_asked:
            return RESTART
    except (StoreUnusable, BrokerError) as error:
        log.error("%s", error)
        return 1
    except StoreError as error:
        log.error("cannot write %s: %s; free space on its disk, or make it writable", settings.store.path, error)
        return 1
    except PortUnusable as error:
        log.error("%s; check %s and what else uses it", error, error.key)
        return 1
    finally:
        if broker is not None:
            await broker.stop()
        if store is not None:
            store.close()
    return 0


def make_listener(bridge: Bridge, recent: Recent, bound: socket.socket) -> Listener:
    """The status page and its like, on a socket that is bound."""
    from ..http.listener import HttpListener  # here: it is large, and most do without

    return HttpListener(bridge, recent, bound)
