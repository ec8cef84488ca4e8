"""`python -m trainer.demo serve`: run the offline teacher."""

from __future__ import annotations

import argparse

from trainer.demo.server import Knobs, serve
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
    command.add_argument("--seed", type=int, default=0, help="another seed draws other replies")
    command.add_argument("--latency-ms", type=_at_least_zero, default=0.0, help="wait before each answer")
    command.add_argument("--rpm", type=_at_least_zero, default=0.0, help="requests a minute before 429; 0 is no limit")
    command.add_argument("--error-rate", type=_share, default=0.0, help="share of attempts answered 500")
    command.add_argument("--garble", type=_share, default=0.0, help="share of replies that cannot be used")
    command.add_argument("--position-bias", type=float, default=0.0, help="points added to the response that is read first")
    command.add_argument("--inject", type=_share, default=0.0, help="share of new instructions that speak to the referee")
    options = vars(parser.parse_args(arguments))
    del options["command"]
    try:
        serve(options.pop("host"), options.pop("port"), Knobs(**options))
    except ConfigError as error:
        parser.exit(1, f"{error}\n")


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share: give a number from 0 to 1")
    return value


def _at_least_zero(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return value


if __name__ == "__main__":
    main()
