"""The tables of docs/scale.md: what the plan says of one model on 2 to 10,000 workers. `make plan-scale`; a quarter of an hour.

Nothing is measured: every number is `pserver plan`'s, or one of its formulas.
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from deploy.measure.text import seconds, size
from deploy.predict import floors
from deploy.predict.inputs import Wishes, scenario_by_hand
from deploy.predict.plan import WORTH, Plan, changed_steps, floor_s, if_halved, ring_step_s
from deploy.predict.scenario import Scenario
from deploy.predict.simulate import simulate
from ps.config import PullFormat

PAGE = Path("docs/scale.md")
WORKERS = (2, 16, 128, 1_000, 10_000)
SHARES = (16, 8, 4, 2, 1)
"""Workers for each server."""
USUAL = Wishes(model="gpt2", gflops=762, device_gflops=40_000, batch=16, bandwidth="10gbit", latency_ms=0.05)
OTHER_LINKS = ("1gbit", "100gbit")
AT = 16
"""Workers that links are compared with."""
RACK, UPLINKS, AGGREGATOR = 40, ("400gbit", "40gbit", "4gbit"), "100gbit"
IN_RACKS = 1_000
"""Workers in racks."""
SLOW = 0.001
"""Part of steps in which one rank is late."""
SLOTS, COPIES = 2, 2
"""Adam's values for a parameter, and versions that a server keeps."""
NOISE_SAMPLES = 20_000
"""Gradient noise scale of the example."""


def main() -> None:
    began_s = time.process_time()
    plans = {workers: _best(workers) for workers in WORKERS}
    tables = {
        "assumed": _assumed(),
        "servers": _servers(plans),
        "growth": _growth(plans),
        "links": _links(plans[AT]),
        "members": _members(plans),
        "formats": _formats(plans),
        "racks": _racks(plans[IN_RACKS].scenario.num_servers),
        "noise": _noise(),
    }
    PAGE.write_text(filled(PAGE.read_text(), tables, "make plan-scale"))
    print(f"{PAGE}: {len(tables)} tables in {time.process_time() - began_s:.0f} s of processor time")


def filled(text: str, tables: Mapping[str, str], made_by: str) -> str:
    """The page with every table in its place, between marks that name its command. Raises ValueError for one without."""
    for name, table in tables.items():
        pattern = rf"(<!-- {name}: {made_by} -->\n).*?(<!-- end -->)"
        text, found = re.subn(pattern, lambda match, table=table: match[1] + table + match[2], text, flags=re.DOTALL)  # type: ignore[misc]
        if found != 1:
            raise ValueError(f"the page has {found} places for the table {name!r}")
    return text


def command(workers: int, servers: int) -> str:
    """What the user would type for one row."""
    given = {name: value for name, value in vars(replace(USUAL, workers=workers, servers=servers)).items() if value not in (None, False, ())}
    return " ".join(["pserver plan", *(f"--{name.replace('_', '-')} {value}" for name, value in given.items())])


def _wished(**wishes: object) -> Scenario:
    return scenario_by_hand(replace(USUAL, **wishes))  # type: ignore[arg-type]


def _best(workers: int) -> Plan:
    """With the best of some numbers of servers."""
    counts = sorted({max(1, workers // share) for share in SHARES})
    by_servers = {servers: simulate(_wished(workers=workers, servers=servers)).step_s for servers in counts}
    best = min(servers for servers, step_s in by_servers.items() if step_s <= (1 + WORTH) * min(by_servers.values()))
    return _planned(_wished(workers=workers, servers=best), by_servers)


def _planned(scenario: Scenario, by_servers: Mapping[int, float], formats: Sequence[PullFormat] = ("fp32", "bf16")) -> Plan:
    """`formats`: of both ways; the first one is the plan's."""
    steps = {name: simulate(replace(scenario, comm=replace(scenario.comm, push_format=name, pull_format=name))) for name in formats}
    by_format = {f"{name}/{name}": step.step_s for name, step in steps.items()}
    halved = if_halved(scenario, changed_steps(scenario, steps["fp32"]))
    return Plan(scenario, steps["fp32"], floor_s(scenario), ring_step_s(scenario), halved, by_servers, by_format)


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def _of(plan: Plan) -> tuple[str, str]:
    return f"{plan.scenario.num_workers:,}", f"{plan.scenario.num_servers:,}"


def _assumed() -> str:
    base = _wished()
    costs, wire_s = base.costs, floors.transfer_s(base.model_bytes * base.costs.wire_overhead, base.worker_link(0))
    reached = f"{USUAL.batch} samples of {USUAL.gflops:g} GFLOP on a device that reaches {(USUAL.device_gflops or 0) / 1e3:g} TFLOP/s"
    links = f"{USUAL.bandwidth} of every host, each way, {USUAL.latency_ms:g} ms one way"
    rows = [
        ("model", f"{USUAL.model}, {base.model_bytes / 4e6:.0f} M parameters, {size(base.model_bytes)} in fp32; Adam"),
        ("compute of a worker", f"{reached}: {seconds(base.compute_s)}"),
        ("links", f"{links}: the model takes {seconds(wire_s)} in one direction, with headers"),
        ("hosts", "one for every worker and every server"),
        ("processors", f"the plan's default costs: a core of a worker sends {1e-9 / costs.push_byte_s:.1f} GB/s, one of a server takes as much"),
        ("for example", f"`{command(AT, AT)}`"),
    ]
    return _table(("Assumed", ""), rows)


def _servers(plans: Mapping[int, Plan]) -> str:
    heads = ("Workers", *(f"{share} for each server" if share > 1 else "as many servers" for share in SHARES))
    rows = []
    for workers, plan in plans.items():
        steps = [seconds(plan.by_servers[workers // share]) if workers // share else "" for share in SHARES]
        rows.append((f"{workers:,}", *steps))
    return _table(heads, rows)


def _growth(plans: Mapping[int, Plan]) -> str:
    heads = ("Workers", "Servers", "Step", "Efficiency", "Samples/s", "Bottleneck", "Half of it", "Ring all-reduce", "Efficiency there")
    rows = []
    for plan in plans.values():
        step, ring = plan.step, plan.ring_s
        rows.append(
            (
                *_of(plan),
                seconds(step.step_s),
                f"{step.efficiency:.0%}",
                f"{step.samples_per_s:,.0f}",
                plan.bottleneck,
                seconds(min(plan.halved.values())),
                seconds(ring),
                f"{step.compute_s / ring:.0%}",
            )
        )
    return _table(heads, rows)


def _links(usual: Plan) -> str:
    heads = ("Links", "Step", "Efficiency", "Bottleneck", "Half of it", "Floor of the exchange", "Ring all-reduce")
    size_of = {"workers": usual.scenario.num_workers, "servers": usual.scenario.num_servers}
    others = {rate: _planned(_wished(bandwidth=rate, **size_of), {}, ("fp32",)) for rate in OTHER_LINKS}
    rows = []
    for rate in sorted([*OTHER_LINKS, USUAL.bandwidth or ""], key=lambda rate: int(rate.removesuffix("gbit"))):
        plan = others.get(rate, usual)
        rows.append(
            (
                rate,
                seconds(plan.step.step_s),
                f"{plan.step.efficiency:.0%}",
                plan.bottleneck,
                seconds(min(plan.halved.values())),
                seconds(plan.floor_s),
                seconds(plan.ring_s),
            )
        )
    return _table(heads, rows)


def _members(plans: Mapping[int, Plan]) -> str:
    """What one process holds, by counting."""
    heads = ("Workers", "Servers", "Connections of a server", "of a worker", "Parameters and Adam's state on a server", "Steps with a late rank")
    rows = []
    for plan in plans.values():
        workers, servers, model = plan.scenario.num_workers, plan.scenario.num_servers, plan.scenario.model_bytes
        state = size(round(COPIES * (1 + SLOTS) * model / servers))
        rows.append((*_of(plan), f"{workers:,}", f"{servers:,}", state, f"{1 - (1 - SLOW) ** workers:.1%}"))
    return _table(heads, rows)


def _formats(plans: Mapping[int, Plan]) -> str:
    names = ("fp32/fp32", "bf16/bf16")
    rows = [
        (*_of(plan), *(seconds(plan.by_format[name]) for name in names), f"{1 - plan.by_format[names[1]] / plan.by_format[names[0]]:.0%}")
        for plan in plans.values()
    ]
    return _table(("Workers", "Servers", *names, "Shorter by"), rows)


def _racks(servers: int) -> str:
    heads = ("Uplink of a rack", "Without aggregators", f"With one on {AGGREGATOR}", "", "Ring all-reduce")
    rows = []
    for uplink in UPLINKS:
        flat = _wished(workers=IN_RACKS, servers=servers, rack_size=RACK, uplink=uplink)
        summed = _wished(workers=IN_RACKS, servers=servers, rack_size=RACK, uplink=uplink, aggregator_bandwidth=AGGREGATOR)
        flat_s, summed_s = simulate(flat).step_s, simulate(summed).step_s
        pays = "pays" if summed_s < (1 - WORTH) * flat_s else "does not pay"
        rows.append((uplink, seconds(flat_s), seconds(summed_s), pays, seconds(ring_step_s(flat))))
    return _table(heads, rows)


def _noise() -> str:
    heads = ("Workers", "Samples in a step", "Steps, times the fewest", "Samples, times the fewest")
    batches = [(workers, workers * (USUAL.batch or 1)) for workers in WORKERS]
    return _table(heads, [(f"{w:,}", f"{b:,}", f"{1 + NOISE_SAMPLES / b:.3g}", f"{1 + b / NOISE_SAMPLES:.3g}") for w, b in batches])


if __name__ == "__main__":
    main()
