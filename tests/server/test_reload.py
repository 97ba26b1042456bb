"""What of another configuration takes effect in a running server."""

from __future__ import annotations

import pytest
from msgspec.structs import fields, replace

from server.reload import NEEDS_RESTART, in_force
from server.settings import LimitSettings, ModelSettings, SchedulerSettings, ServerSettings, Settings, SwapSettings

RUNNING = Settings(models=(ModelSettings(id="org/a", path="/a"),))


def test_keys_limits_rules_and_models_take_effect() -> None:
    wanted = Settings(
        models=(ModelSettings(id="org/b", path="/b"),),
        server=ServerSettings(api_key="key", admin_key="admin", stop_deadline=5, payload_limit=7),
        limits=LimitSettings(max_concurrent_requests=3),
        swap=SwapSettings(drain=1),
    )
    assert in_force(RUNNING, wanted) == (wanted, ())


def test_what_needs_a_restart_stays_and_is_named() -> None:
    wanted = replace(
        RUNNING,
        server=ServerSettings(port=1, log_level="debug", api_key="key"),
        scheduler=SchedulerSettings(decode_per_feed=9),
    )
    settings, ignored = in_force(RUNNING, wanted)
    assert settings == replace(RUNNING, server=ServerSettings(api_key="key"))
    assert ignored == ("server.port", "server.log_level", "scheduler.decode_per_feed")


@pytest.mark.parametrize("key", NEEDS_RESTART)
def test_each_of_them_is_a_setting(key: str) -> None:
    section, _, name = key.partition(".")
    assert name in {field.name for field in fields(getattr(RUNNING, section))}
