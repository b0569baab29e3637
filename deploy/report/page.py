"""`report.html`: everything that a run has recorded, on one page that needs nothing else."""

import json
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from deploy.measure.ledger_file import read_ledger
from deploy.measure.recorded import Recorded, read_run
from deploy.measure.table import tables
from deploy.predict.changes import Outlook, outlook
from deploy.predict.inputs import scenario_of_run
from deploy.report import words
from deploy.report.figures import Figure, figures
from deploy.rundir import RunDirectory, write_atomic
from ps.errors import ConfigError


def write_report(run: RunDirectory) -> Path:
    """The run's report, anew. Raises ConfigError if a file of the run is damaged, OSError if the report cannot be written."""
    write_atomic(run.report, page(read_run(run), _outlook(run)).encode())
    return run.report


def _outlook(run: RunDirectory) -> Outlook | None:
    """None of a run that there are no predictions for: too few steps, or a task that is not here."""
    try:
        return outlook(scenario_of_run(run), list(read_ledger(run.comm)))
    except ConfigError:
        return None


def page(recorded: Recorded, predicted: Outlook | None = None) -> str:
    """HTML; what the run's files say is shown as text, whatever it holds."""
    drawn = figures(recorded)
    summary = recorded.summary or {}
    template = files("deploy.report").joinpath("page.html.j2").read_text()
    return (
        Environment(autoescape=True, undefined=StrictUndefined)
        .from_string(template)
        .render(
            name=recorded.run.name,
            path=recorded.run.path,
            status=summary.get("status", ""),
            outcome=words.outcome(recorded),
            headline=words.headline(recorded.window),
            outlook=words.outlook(predicted, recorded.window),
            what_ifs=words.what_ifs(recorded.window),
            noise=words.noise(recorded.window),
            recoveries=words.recoveries(summary),
            words={"losses": words.curves(recorded.history), "traffic": words.traffic(recorded)},
            figures=drawn,
            tables=tables(recorded.window),
            versions=summary.get("versions", {}),
            params_sha256=summary.get("params_sha256"),
            config=recorded.config_text,
            plotly=Markup(get_plotlyjs()),
            data=_script({figure.key: figure for figure in drawn}),
        )
    )


def _script(drawn: dict[str, Figure]) -> Markup:
    """JSON that no text within it can turn into HTML."""
    plain = {key: {name: asdict(figure)[name] for name in ("traces", "layout")} for key, figure in drawn.items()}
    text = json.dumps(plain, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
