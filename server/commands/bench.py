"""`neuronx-serve bench`: measure the engine, a running server, or an exchange of models."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from server.bench import exchange, remote, report, simulated, storm, table
from server.bench.timeline import EngineFigures
from server.commands import refuse
from server.commands.terminal import ProgressLine
from server.errors import ConfigurationError

DESCRIPTION = (
    "Measure. --simulated: the engine against a device with set step times, as ratios to that device; --http puts the "
    "HTTP server and clients around it, --storm also clients who leave. --swap: an exchange of two simulated models "
    "under running streams. --url: a running server, through TGI's route or OpenAI's. The columns are defined in "
    "server/bench/."
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One of the three kinds, and how much of it."""
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--simulated", action="store_true", help="the engine against a simulated device")
    kind.add_argument("--swap", action="store_true", help="an exchange of two simulated models")
    kind.add_argument("--url", type=_address, help="a running server, as http://127.0.0.1:8080")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as a list of JSON objects")
    engine = parser.add_argument_group("with --simulated")
    engine.add_argument("--http", action="store_true", help="over HTTP; adds api_cpu_us_per_token")
    engine.add_argument(
        "--storm", type=_count, metavar="N", help="with --http: the streams alone, and beside N clients who hang up"
    )
    engine.add_argument(
        "--streams", type=_counts, default=[1, 10, 32, 64], help="default 1,10,32,64 (--swap: the first)"
    )
    engine.add_argument("--step-ms", type=_milliseconds, default=[20.0, 10.0], help="default 20,10")
    engine.add_argument("--vocab", type=_counts, default=[49_152, 128_256], help="default 49152,128256")
    parser.add_argument(
        "--greedy",
        action="store_true",
        help="no sampling (default: temperature and top-p; --simulated: top-k too; --route openai: as the server does)",
    )
    parser.add_argument("--tokens", type=_count, default=200, help="new tokens a request; default 200")
    server = parser.add_argument_group("with --url")
    server.add_argument("--route", choices=("tgi", "openai"), default="tgi", help="default tgi")
    server.add_argument("--api-key", default=os.environ.get("API_KEY", ""), help="default: the variable API_KEY")
    server.add_argument("--concurrency", type=_counts, default=[1, 4, 10], help="default 1,4,10")
    server.add_argument("--requests", type=_count, default=0, help="at each concurrency; default four times as many")
    server.add_argument("--seconds", type=_seconds, default=900.0, help="ask no more after this long; default 900")
    server.add_argument("--report", type=Path, metavar="FILE", help="write the plots as one page of HTML")
    parser.add_argument("--load-s", type=float, default=3.0, help="with --swap: seconds a load takes; default 3")


def run(arguments: argparse.Namespace) -> int:
    """Print a row as soon as it is measured; 1 when the server cannot be reached or answers nothing, 130 for Ctrl+C.

    What was measured before that is written all the same.
    """
    if wrong := _wrong(arguments):
        return refuse(ConfigurationError(wrong), 2)
    progress = ProgressLine(sys.stderr)
    rows: list[msgspec.Struct] = []
    exit_code = 0
    try:
        if arguments.url:
            _show(remote.ClientFigures, _remote(arguments, progress), progress, rows)
        elif arguments.swap:
            _show(exchange.ExchangeFigures, _exchanges(arguments, progress), progress, rows)
        elif arguments.storm:
            _show(storm.StormFigures, _storms(arguments, progress), progress, rows)
        else:
            _show(EngineFigures, _simulated(arguments, progress), progress, rows)
    except RuntimeError as error:
        progress.close()
        exit_code = refuse(error, 1)
    except KeyboardInterrupt:
        progress.close()
        exit_code = 128 + signal.SIGINT
    if rows:
        _write(arguments, rows)
    return exit_code


def _wrong(arguments: argparse.Namespace) -> str:
    """What cannot work, before the first minute is spent on it; "" if nothing is."""
    if arguments.storm and not (arguments.simulated and arguments.http):
        return "--storm is measured over HTTP: add --simulated --http"
    if arguments.report and not arguments.url:
        return "--report draws what clients of a running server saw: add --url"
    if arguments.url and arguments.api_key:
        if not arguments.api_key.isprintable():
            return f"the API key {arguments.api_key!r} holds a character that no header may hold"
        if urlsplit(arguments.url).username is not None:
            return "--url names a user and there is an API key too: a request can bring only one of them"
    for file in (arguments.json, arguments.report):
        if file is not None and not (file.parent.is_dir() and os.access(file.parent, os.W_OK)):
            return f"{file} cannot be written: {file.parent} is no directory that can be written to"
    return ""


def _write(arguments: argparse.Namespace, rows: Sequence[msgspec.Struct]) -> None:
    if arguments.json:
        arguments.json.write_bytes(table.to_json(rows))
    if arguments.report:
        title = f"neuronx-serve bench of {arguments.url}"
        subtitle = f"Prompts of about 104 tokens, {arguments.tokens} new tokens, route {arguments.route}."
        seen = [row for row in rows if isinstance(row, remote.ClientFigures)]
        arguments.report.write_text(report.page(seen, title=title, subtitle=subtitle), "utf-8")


def _show(
    kind: type[msgspec.Struct],
    measured: Iterable[msgspec.Struct],
    progress: ProgressLine,
    rows: list[msgspec.Struct],
) -> None:
    """Print each row when it comes, and keep it in `rows`."""
    print(table.heading(kind))
    for row in measured:
        progress.close()
        print(table.line(row), flush=True)
        rows.append(row)


def _simulated(arguments: argparse.Namespace, progress: ProgressLine) -> Iterator[EngineFigures]:
    return (simulated.measure(case) for case in _cases(arguments, progress))


def _storms(arguments: argparse.Namespace, progress: ProgressLine) -> Iterator[storm.StormFigures]:
    return (storm.measure(case, arguments.storm) for case in _cases(arguments, progress))


def _cases(arguments: argparse.Namespace, progress: ProgressLine) -> Iterator[simulated.Case]:
    chosen = simulated.cases(arguments.streams, arguments.step_ms, arguments.vocab)
    for number, (streams, step_ms, vocab) in enumerate(chosen):
        progress.update(f"{streams} streams, {step_ms:g} ms, vocabulary {vocab}: case", number + 1, len(chosen))
        yield simulated.Case(
            streams=streams,
            step_ms=step_ms,
            vocab=vocab,
            tokens=arguments.tokens,
            sampling=simulated.GREEDY if arguments.greedy else simulated.SAMPLING,
            over_http=arguments.http,
        )


def _exchanges(arguments: argparse.Namespace, progress: ProgressLine) -> Iterator[exchange.ExchangeFigures]:
    cases = [0, *(streams for streams in arguments.streams if streams > 1)][:2]
    for number, streams in enumerate(cases):
        progress.update(f"an exchange under {streams} streams: case", number + 1, len(cases))
        yield exchange.measure(streams, arguments.load_s)


def _remote(arguments: argparse.Namespace, progress: ProgressLine) -> Iterator[remote.ClientFigures]:
    # What a server was asked before, in another row or by another run, costs it less where it reuses prefixes.
    first = random.randrange(100_000, 900_000)
    for concurrency in arguments.concurrency:
        requests = arguments.requests or 4 * concurrency
        row = asyncio.run(
            remote.measure(
                arguments.url,
                arguments.route,
                concurrency=concurrency,
                requests=requests,
                tokens=arguments.tokens,
                seconds=arguments.seconds,
                api_key=arguments.api_key,
                greedy=arguments.greedy,
                first=first,
                progress=_counting(progress, f"{concurrency} at once, requests", requests),
            )
        )
        if row.error:
            print(f"{row.failed} of {row.failed + row.requests} failed: {row.error}", file=sys.stderr)
        first += requests
        yield row


def _counting(progress: ProgressLine, phase: str, total: int) -> Callable[[int], None]:
    return lambda done: progress.update(phase, done, total)


def _address(text: str) -> str:
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, or over 65535
        usable = False
    if not usable:
        raise argparse.ArgumentTypeError(f"{text!r} is no server's address: give it as http://HOST:PORT")
    return text


def _counts(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be 1 or more")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{value:g} must be above 0")
    return value


def _milliseconds(text: str) -> list[float]:
    values = [float(part) for part in text.split(",")]
    if min(values) <= 0:
        raise argparse.ArgumentTypeError(f"{min(values):g} must be above 0")
    return values
