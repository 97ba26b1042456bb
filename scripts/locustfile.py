"""The published load test again: users who each ask for one story after the other, for a quarter of an hour.

locust -f scripts/locustfile.py --host http://HOST:8080

The defaults are the published test's: 10 users, 15 minutes, 500 new tokens, no window. Its report puts what was
measured beside the published figures and beside the floors of `neuronx-serve plan`, which no software can beat. One
process of locust only: it keeps every answer's time. Needs the extra `locust`.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from locust import HttpUser, constant, events, task
from story import (
    DOLLARS_PER_HOUR,
    NEW_TOKENS,
    PROMPT,
    PROMPT_TOKENS,
    PUBLISHED,
    RUN_TIME,
    USERS,
    Answer,
    Figures,
    figures,
    floors,
    table,
)

ANSWERS: list[Answer] = []
STARTED = time.monotonic()


@events.init_command_line_parser.add_listener
def add_flags(parser: ArgumentParser) -> None:
    """The published test as defaults of locust's own flags, and flags of this file."""
    parser.set_defaults(
        num_users=USERS, spawn_rate=USERS, run_time=RUN_TIME, headless=True, host="http://127.0.0.1:8080"
    )
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS, help="max_new_tokens of each request")
    parser.add_argument("--model", default="", help="ask for this model (default: the one that is loaded)")
    parser.add_argument("--dollars-per-hour", type=float, default=DOLLARS_PER_HOUR, help="what the instance costs")
    parser.add_argument(
        "--plan-config",
        default=str(Path(__file__).parents[1] / "configs/inf2.toml"),
        help="whose first model is planned",
    )


class Reader(HttpUser):
    """Asks for the story, reads it whole, and asks again at once."""

    wait_time = constant(0)

    @task
    def story(self) -> None:
        """POST /generate; the tokens are counted by the server (`details`)."""
        options = self.environment.parsed_options
        body = {"inputs": PROMPT, "parameters": {"max_new_tokens": options.new_tokens, "details": True}}
        path = f"/models/{options.model}/generate" if options.model else "/generate"
        begin = time.monotonic()
        with self.client.post(path, json=body, name="story", catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"{response.status_code}: {response.text[:200]}")
                return
            generated = response.json()["details"]["generated_tokens"]
        ANSWERS.append(Answer(time.monotonic() - begin, generated))


@events.test_start.add_listener
def begin(**_: Any) -> None:
    """The clock of the report starts with the users."""
    global STARTED
    STARTED = time.monotonic()
    ANSWERS.clear()


@events.test_stop.add_listener
def report(environment: Any, **_: Any) -> None:
    """Print the report."""
    options, seconds = environment.parsed_options, time.monotonic() - STARTED
    prompt_tokens = counted_prompt(environment)
    try:
        measured = figures(ANSWERS, prompt_tokens, seconds, options.dollars_per_hour)
    except ValueError as error:
        print(f"No report: {error}")
        return
    generated = sum(answer.new_tokens for answer in ANSWERS) / len(ANSWERS)
    print(
        f"\n{len(ANSWERS)} answers in {seconds:.0f} s, {environment.stats.total.num_failures} failures, "
        f"{options.num_users} users, {prompt_tokens} tokens of prompt, {generated:.0f} new tokens of "
        f"{options.new_tokens} an answer, ${options.dollars_per_hour} an hour\n"
    )
    print(table([("this run", measured), *planned_floors(options), ("published", PUBLISHED)]))
    if (options.new_tokens, options.num_users) != (NEW_TOKENS, USERS):
        print(f"\nThe published figures are those of {USERS} users and {NEW_TOKENS} new tokens: not this load.")


def counted_prompt(environment: Any) -> int:
    """Tokens of the prompt for the model that is served; the published 104 where the server cannot say."""
    import requests

    answer = requests.post(f"{environment.host}/tokenize", json={"inputs": PROMPT}, timeout=30)
    return len(answer.json()) if answer.ok else PROMPT_TOKENS


def planned_floors(options: Any) -> list[tuple[str, Figures]]:
    """The floors of the first model of --plan-config; none when this project is not installed."""
    try:
        return floors(Path(options.plan_config), options.new_tokens, options.num_users, options.dollars_per_hour)
    except ImportError:
        print("Without plan's floors: neuronx-serve is not installed in locust's environment")
        return []
