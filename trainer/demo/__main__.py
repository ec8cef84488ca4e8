"""`python -m trainer.demo serve`: run the offline teacher."""

from __future__ import annotations

import argparse

from trainer.demo.knobs import Knobs, add_knobs
from trainer.demo.server import serve
from trainer.errors import ConfigError


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m trainer.demo", description="The offline demo of LionWeb.")
    command = parser.add_subparsers(dest="command", required=True).add_parser(
        "serve",
        help="Run the offline teacher, an OpenAI-compatible server that computes exact answers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument("--host", default="127.0.0.1", help="address to listen on")
    command.add_argument("--port", type=int, default=8091, help="port to listen on; 0 takes a free one and prints it")
    add_knobs(command)
    options = vars(parser.parse_args(arguments))
    del options["command"]
    try:
        serve(options.pop("host"), options.pop("port"), Knobs(**options))
    except ConfigError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
