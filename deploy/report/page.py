"""`report.html`: everything that a run has recorded, on one page that needs nothing else."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from deploy.files import write_atomic
from deploy.measure.ledger_file import read_ledger
from deploy.measure.recorded import Recorded, read_run
from deploy.measure.table import tables
from deploy.predict.changes import Outlook, outlook
from deploy.predict.inputs import scenario_of_run
from deploy.report import words
from deploy.report.figure import Figure
from deploy.report.figures import figures
from deploy.rundir import RunDirectory
from ps.errors import ConfigError


def write_report(run: RunDirectory) -> Path:
    """The run's report, anew. Raises ConfigError if a file of the run is damaged, OSError if the report cannot be written."""
    write_atomic(run.report, page(read_run(run), _outlook(run)).encode())
    return run.report


def _outlook(run: RunDirectory) -> Outlook | str | None:
    """Why there are no predictions for the run, if there are none: too few steps, or a task that is not here. None without steps."""
    steps = list(read_ledger(run.comm))
    try:
        return outlook(scenario_of_run(run), steps) if steps else None
    except ConfigError as error:
        return str(error)


def page(recorded: Recorded, predicted: Outlook | str | None = None) -> str:
    """HTML; what the run's files say is shown as text, whatever it holds. `predicted`: or why nothing is."""
    drawn = figures(recorded)
    summary = recorded.summary or {}
    return render(
        "page.html.j2",
        drawn,
        name=recorded.run.name,
        path=recorded.run.path,
        status=summary.get("status", ""),
        simulated=summary.get("simulated"),
        outcome=words.outcome(recorded),
        headline=words.headline(recorded.window),
        outlook=words.outlook(predicted, recorded.window),
        is_predicted=not isinstance(predicted, str),
        what_ifs=words.what_ifs(recorded.window),
        noise=words.noise(recorded.window),
        recoveries=words.recoveries(summary),
        words={"losses": words.curves(recorded.history), "traffic": words.traffic(recorded)},
        tables=[table.upright for table in tables(recorded.window)],
        versions=summary.get("versions", {}),
        params_sha256=summary.get("params_sha256"),
        config=recorded.config_text,
    )


def render(template: str, figures: Sequence[Figure], **values: Any) -> str:
    """A page of `deploy.report`'s templates, with the figures that it shows; it needs nothing else."""
    script = _script({figure.key: figure for figure in figures})
    return _templates().get_template(template).render(figures=figures, plotly=Markup(get_plotlyjs()), data=script, **values)


@cache
def _templates() -> Environment:
    return Environment(loader=PackageLoader("deploy.report", ""), autoescape=True, undefined=StrictUndefined)


def _script(drawn: dict[str, Figure]) -> Markup:
    """JSON that no text within it can turn into HTML."""
    plain = {key: {name: asdict(figure)[name] for name in ("traces", "layout")} for key, figure in drawn.items()}
    text = json.dumps(plain, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
