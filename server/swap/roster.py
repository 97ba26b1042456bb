"""The models that a server knows: those of its configuration, in its order, then those that left it and are in use.

A model in use keeps the settings it came with, and gives way to its successor afterwards. Who is in use is told: this
module knows no device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from server.settings import ModelSettings, Settings
from server.swap.model import Model


class Roster:
    """`models`, never empty; the first is the default one."""

    def __init__(self, settings: Settings, make: Callable[[ModelSettings, Settings], Model]) -> None:
        self._settings = settings
        self._make = make
        self._outdated = False
        self.models = tuple(make(model, settings) for model in settings.models)

    def find(self, name: str) -> Model | None:
        """The model of exactly this id."""
        return next((model for model in self.models if model.id == name), None)

    def route(self, path: str) -> tuple[Model, str] | None:
        """Split "<id>/<rest>" (or "<id>") at the longest configured id; ids contain slashes themselves."""
        fitting = [model for model in self.models if path == model.id or path.startswith(model.id + "/")]
        if not fitting:
            return None
        model = max(fitting, key=lambda each: len(each.id))
        return model, path[len(model.id) + 1 :]

    def adopt(self, settings: Settings) -> None:
        """Another configuration. Its limits hold at once; its models once `renew` was called."""
        self._settings = settings
        self._outdated = True
        for model in self.models:
            model.limit(settings.limits)

    def configured(self, model: Model) -> bool:
        """Whether the configuration still names a model."""
        return any(each.id == model.id for each in self._settings.models)

    def renew(self, in_use: Callable[[Model], bool]) -> Mapping[Model, Model | None]:
        """Let the models be those of the configuration, but for those in use. Who gave way, and to whom if anybody."""
        if not self._outdated:
            return {}
        before = self.models
        configured = [self._renewed(settings, in_use) for settings in self._settings.models]
        leaving = [model for model in before if not self.configured(model) and in_use(model)]
        self.models = (*configured, *leaving)
        self._outdated = bool(self.outdated)
        return {model: self.find(model.id) for model in before if model not in self.models}

    @property
    def outdated(self) -> tuple[Model, ...]:
        """The models whose settings are not those of the configuration."""
        return tuple(model for model in self.models if model.settings not in self._settings.models)

    def _renewed(self, settings: ModelSettings, in_use: Callable[[Model], bool]) -> Model:
        known = self.find(settings.id)
        if known is None or (known.settings != settings and not in_use(known)):
            return self._make(settings, self._settings)
        return known
