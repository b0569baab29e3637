"""All that `pserver plan` answers, for programs and for people."""

from dataclasses import dataclass
from typing import Any

from deploy.predict.inputs import Wishes, scenario_by_hand
from deploy.predict.plan import plan
from deploy.predict.sources import asked, to_target


@dataclass(frozen=True)
class Answers:
    """The same twice."""

    values: dict[str, Any]
    """Plain ones, ready for JSON."""
    text: str


def by_hand(wishes: Wishes) -> Answers:
    """Of what is wished alone. Raises ConfigError."""
    found = plan(scenario_by_hand(wishes))
    return Answers(found.to_dict(), found.text())


def of_source(source: str, wishes: Wishes, *, calibrate: bool, target: str | None) -> Answers:
    """Of a run, or a config, whose task is timed. `target`: how long to it, too. Raises ConfigError, and what ended the run that calibrates."""
    told = asked(source, wishes, calibrate=calibrate)
    found = plan(told.scenario)
    values, lines = {**found.to_dict(), **told.to_dict()}, [found.text(), *told.lines()]
    if target:
        duration = to_target(source, found.step, target)
        values["target"] = duration.to_dict()
        lines.append(duration.text())
    return Answers(values, "\n".join(lines))
