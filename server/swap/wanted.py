"""Which models are wanted on the device, and by whom: what operators, requests and exchanges leave behind.

Rules over models as they stand: knows no device, no clock and no task. The registry tells it what happened, and brings
about what it says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from server.swap.model import Model


class Wanted:
    """`asked`: the last activate that is not yet fulfilled. `home`: who comes back by itself when there is room and
    nobody is asked for. `active`: where bare requests go; during an exchange the incoming one."""

    def __init__(self, default: Model) -> None:
        self.active = default
        self.asked: Model | None = default
        self.home: Model | None = default
        self._unloads: list[Model] = []
        self._called_off = False  # an operator decided for a model that must leave for the exchange under way

    # --- what operators decide

    def ask(self, model: Model) -> Model | None:
        """Activate: the last one who asks decides. Whom this outdid, if anybody."""
        outdone, self.asked = self.asked, model
        if model in self._unloads:
            self._unloads.remove(model)
        self._called_off = False
        return outdone

    def fulfil(self, model: Model) -> None:
        """`model` was asked for and is there."""
        self.asked = None
        self.home = self.active = model

    def call_off(self) -> None:
        """The exchange under way is to end without its newcomer, unless that one is asked for."""
        self._called_off = True

    def withdraw(self, model: Model) -> None:
        """Unload: nobody asks for `model` now, nor does it come back by itself."""
        self.give_up(model)
        if self.home is model:
            self.home = None
        if model not in self._unloads:
            self._unloads.append(model)

    def next_unload(self) -> Model | None:
        """Whom to take off the device now; told once."""
        return self._unloads.pop(0) if self._unloads else None

    # --- what became of it

    def expect(self, newcomer: Model) -> None:
        """An exchange for `newcomer` begins."""
        self.active = newcomer
        self._called_off = False

    def needs(self, newcomer: Model) -> bool:
        """Whether anybody still wants a model that is on its way; an activate of another one decides against it."""
        if self.asked is not None:
            return newcomer is self.asked
        return not self._called_off and (newcomer is self.home or not newcomer.engine.empty)

    def exchanged(self, newcomer: Model, leaving: Sequence[Model], came: bool) -> None:
        """An exchange has ended. When its newcomer did not come, the first of those who left for it is at home."""
        if newcomer.state != "unloaded":  # else: cancelled, and perhaps asked for again since
            self.give_up(newcomer)
        if came:
            self.home = newcomer
        elif gone := [model for model in leaving if model.state == "unloaded" and model not in self._unloads]:
            self.home = gone[0]

    def give_up(self, model: Model) -> None:
        """Whoever asked for `model` has had the answer."""
        if self.asked is model:
            self.asked = None

    def settle(self, there: Sequence[Model]) -> None:
        """When the active model did not come, or is lost for good, bare requests go to one of those `there`."""
        if self.active not in there:
            self.active = there[-1] if there else self.home or self.active

    # --- another configuration

    def dismiss(self, model: Model, default: Model) -> None:
        """`model` is not configured any more, and in use. The default model takes what was its own."""
        if self.active is model:
            self.active = default
        was_home = self.home is model
        self.withdraw(model)
        if was_home:
            self.home = default

    def renew(self, gave_way: Mapping[Model, Model | None], default: Model) -> None:
        """Models gave way to their successors; the default model takes the place of those who have none."""
        if self.home is not None:
            self.home = gave_way.get(self.home, self.home) or default
        if self.asked is not None:
            self.asked = gave_way.get(self.asked, self.asked)
        self.active = gave_way.get(self.active, self.active) or default
        self._unloads = [model for model in self._unloads if model not in gave_way]
