"""The command line: `goip-bridge <command>`."""

import argparse
import sys

from bridge import __version__, config_cli, service
from bridge.sim import cli as sim_cli


def main() -> int:
    """Dispatch to the command; returns its exit code: 0 done, 1 runtime failure, 2 wrong usage or configuration."""
    parser = argparse.ArgumentParser(prog="goip-bridge", description="GoIP GSM gateways to MQTT and back.")
    parser.add_argument("--version", action="version", version=f"goip-bridge {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module, help in (
        ("run", service, "run the bridge"),
        ("sim", sim_cli, "run simulated GoIP lines against an SMS server"),
        ("config", config_cli, "check, show or describe the configuration"),
    ):
        subparser = subparsers.add_parser(name, help=help, description=help)
        module.add_arguments(subparser)
        subparser.set_defaults(main=module.main)
    args = parser.parse_args()
    code: int = args.main(args)
    return code


if __name__ == "__main__":
    sys.exit(main())
