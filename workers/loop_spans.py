"""What an own loop's time is spent on, as far as it shows: when it calls the model, and when gradients come."""

from typing import Any

import torch
from torch import nn

from workers.spans import Spans


class LoopSpans:
    """Time of a step that has no other name is data wait until the model is called, forward until that returns, then backward.

    A loop that never calls the model itself, but parts of it, has its forward until the first gradient is there.
    """

    def __init__(self, model: nn.Module, spans: Spans) -> None:
        self._spans = spans
        self._name = "data_wait"
        """What time that passes outside of the model is."""
        model.register_forward_pre_hook(self._hook(self._enters))
        model.register_forward_hook(self._hook(self._leaves))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._hook(self._made))  # type: ignore[no-untyped-call]

    @staticmethod
    def _hook(call: Any) -> Any:
        """A plain function, so that a deep copy of the model does not copy what is behind it."""

        def hook(*_: Any) -> None:
            call()

        return hook

    def _enters(self) -> None:
        self._spans.rest(self._name)

    def _leaves(self) -> None:
        self._spans.rest("forward")
        if torch.is_grad_enabled():
            self._name = "backward"

    def _made(self) -> None:
        if self._name == "data_wait":
            self._spans.rest("forward")
            self._name = "backward"

    def begins(self) -> None:
        """The step's exchange begins, before or after its forward."""
        self._spans.rest(self._name)

    def ends(self) -> None:
        """The step's backward is over; the next step begins after its exchange."""
        self._spans.rest(self._name)
        self._name = "data_wait"
