"""Exhaustive small models of the protocol on its real classes: safety, and the end reachable from every state."""

import pytest

from tests.ps.models.cases import CONTROLS, HOLDS, Control
from tests.ps.models.core import Model, explore


@pytest.mark.parametrize("model", HOLDS.values(), ids=HOLDS.keys())
def test_protocol_is_safe_and_always_ends(model: Model) -> None:
    found = explore(model)
    assert found.kind == "holds", str(found)


@pytest.mark.parametrize("control", CONTROLS, ids=[control.rule for control in CONTROLS])
def test_protocol_without_the_rule_fails(control: Control) -> None:
    found = explore(control.model)
    assert found.kind in control.kinds, f"{control.rule}: {control.why}. {found}"
