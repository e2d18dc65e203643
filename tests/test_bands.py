"""The house of DESIGN section 3: a module imports only from lower bands."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "llmlab"

BANDS = {
    "recommend": 6,
    "knobs": 6,
    "closer": 7,
    "rest": 3,
    "tune": 10,
    "tunelook": 11,
    "tunehtml": 12,
    "tuneview": 12,
    "tuning": 11,
    "cli.models": 14,
    "machine": 0,
    "loadfit": 0,
    "backoff": 0,
    "batch": 0,
    "clock": 0,
    "columns": 0,
    "curves": 0,
    "errors": 0,
    "flow": 0,
    "frontend": 0,
    "heap": 0,
    "lenient": 0,
    "mismatch": 0,
    "nested": 0,
    "packing": 0,
    "pieces": 0,
    "rules.checks": 0,
    "rules.meter": 0,
    "runlock": 0,
    "types": 0,
    "version": 0,
    "steady": 0,
    "writer": 0,
    "doors": 0,
    "sim.packs": 1,
    "pilot": 1,
    "bootstrap": 1,
    "call": 1,
    "entries": 1,
    "estimate": 1,
    "events": 1,
    "fields": 1,
    "identity": 1,
    "offstage": 1,
    "places": 1,
    "plan": 1,
    "prices": 1,
    "providers.fault": 1,
    "providers.limits": 1,
    "providers.sse": 1,
    "roster": 1,
    "rule": 1,
    "rules.adapt": 1,
    "rules.evidence": 1,
    "rules.governor": 1,
    "rules.strain": 1,
    "schemas": 1,
    "segmented": 1,
    "sim.batches": 1,
    "sim.kinds": 1,
    "sim.strictness": 1,
    "sim.wire": 1,
    "source": 1,
    "template": 1,
    "views": 1,
    "batch.names": 2,
    "fitting": 2,
    "measured": 2,
    "frame": 2,
    "grid": 2,
    "line": 2,
    "loops": 2,
    "metrics": 2,
    "policies": 2,
    "policies.fallback": 2,
    "policies.hedge": 2,
    "policies.reask": 2,
    "policies.retry": 2,
    "policies.timeout": 2,
    "pricelist": 2,
    "progress": 2,
    "providers.base": 2,
    "providers.structured": 2,
    "providers.taxonomy": 2,
    "rules": 2,
    "rules.adaptive": 2,
    "rules.breaker": 2,
    "rules.classic": 2,
    "rules.elastic": 2,
    "rules.rate": 2,
    "rules.slots": 2,
    "rules.spend": 2,
    "shares": 2,
    "sim.anthropic_ask": 2,
    "sim.anthropic_batch": 2,
    "sim.anthropic_wire": 2,
    "sim.aside": 2,
    "sim.buckets": 2,
    "sim.faults": 2,
    "sim.formed": 2,
    "sim.openai_ask": 2,
    "sim.openai_upload": 2,
    "sim.openai_wire": 2,
    "sim.physics": 2,
    "sim.script": 2,
    "sim.tally": 2,
    "stats.checks": 2,
    "step": 2,
    "stored": 2,
    "closed": 3,
    "answers": 3,
    "bundle": 3,
    "fits": 3,
    "handle": 3,
    "watch": 3,
    "history": 3,
    "inputs": 3,
    "live": 3,
    "logbook": 3,
    "plots.canvas": 3,
    "policies.admit": 3,
    "providers.anthropic": 3,
    "providers.batches": 3,
    "providers.forms": 3,
    "providers.http": 3,
    "providers.openai": 3,
    "sim.openai_batch": 3,
    "sim.place": 3,
    "sim.replies": 3,
    "stats.course": 3,
    "stats.limits": 3,
    "stats.rows": 3,
    "stats.spread": 3,
    "stats.strategies": 3,
    "stats.totals": 3,
    "tree": 3,
    "typed": 3,
    "pool": 4,
    "board": 4,
    "chains": 4,
    "cli.files": 4,
    "experiment": 4,
    "forecast": 4,
    "gauges": 4,
    "journal": 4,
    "batch.ledger": 4,
    "keeper": 4,
    "load": 4,
    "plots.course": 4,
    "plots.latency": 4,
    "plots.ribbons": 4,
    "plots.rows": 4,
    "plots.strategies": 4,
    "policies.cache": 4,
    "policies.pack": 4,
    "providers.anthropic_batches": 4,
    "providers.endpoint": 4,
    "providers.openai_batches": 4,
    "showing": 4,
    "sim.world": 4,
    "stats.sweeps": 4,
    "calibrate": 5,
    "batch.courier": 5,
    "batch.manifest": 5,
    "feeder": 5,
    "order": 5,
    "plots.sweep": 5,
    "plots.twin": 4,
    "providers.presets": 5,
    "sim.transport": 5,
    "stats": 5,
    "strategy": 5,
    "stage": 6,
    "batch.purse": 6,
    "batch.past": 7,
    "batch.settle": 7,
    "batch.task": 6,
    "job": 6,
    "providers": 6,
    "sim": 6,
    "sim.direct": 6,
    "sim.server": 6,
    "target": 6,
    "twin": 8,
    "batch.run": 8,
    "plots.report": 7,
    "quote": 7,
    "reduce": 7,
    "scenario": 7,
    "settings": 7,
    "streams": 7,
    "tables": 7,
    "widgets": 7,
    "batch.job": 9,
    "core": 8,
    "factors": 8,
    "partials": 8,
    "plots": 8,
    "show": 8,
    "trial": 8,
    "compare": 9,
    "sweep": 9,
    "gridhtml": 9,
    "streaming": 9,
    "batch.verbs": 10,
    "combining": 10,
    "experiments": 10,
    "factorial": 10,
    "gridview": 10,
    "submitting": 10,
    "lab": 12,
    "accessor": 13,
    "cli": 13,
    "cli.demo": 13,
    "cli.run": 13,
    "magic": 13,
    "": 14,
    "cli.serve": 14,
    "__main__": 15,
    "service.faults": 1,
    "service.rooms": 2,
    "service.shapes": 12,
    "otel": 9,
    "service.logs": 0,
    "service.figures": 0,
    "service.sockets": 0,
    "service.openapi": 0,
    "service.desk": 13,
    "service.page": 13,
    "service.asking": 14,
    "service.guard": 14,
    "service.sse": 14,
    "service.entry": 14,
    "service.archive": 15,
    "service.completions": 15,
    "service.chat": 16,
    "service.jobs": 16,
    "service.state": 16,
    "service": 17,
    "service.server": 18,
}

MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """The llmlab modules a file imports, each with whether it stands inside a function."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    found: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        found.extend((target, id(node) in inside) for target in targets_of(node))
    return found


def targets_of(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [n.name.removeprefix("llmlab").lstrip(".") for n in node.names if n.name.split(".")[0] == "llmlab"]
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "llmlab":
        base = (node.module or "").removeprefix("llmlab").lstrip(".")
        names = [f"{base}.{alias.name}".lstrip(".") for alias in node.names]
        modules = [name for name in names if name in BANDS]
        return modules or [base]
    return []


def outside_imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def test_every_module_has_a_band_and_every_band_a_module() -> None:
    assert {name_of(path) for path in MODULES} == set(BANDS)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_from_lower_bands(path: Path) -> None:
    own = BANDS[name_of(path)]
    too_high = [target for target, _ in imports_of(path) if BANDS[target] >= own]
    assert too_high == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_imports_the_package_inside_a_function(path: Path) -> None:
    assert [target for target, inside in imports_of(path) if inside] == []


@pytest.mark.parametrize("path", [p for p in MODULES if name_of(p).startswith("policies.")], ids=name_of)
def test_a_policy_imports_no_policy_and_no_provider(path: Path) -> None:
    assert not [target for target, _ in imports_of(path) if target.startswith(("policies", "providers"))]


@pytest.mark.parametrize("path", [p for p in MODULES if name_of(p).startswith("rules.")], ids=name_of)
def test_a_rule_imports_only_errors_and_what_rules_are_made_of(path: Path) -> None:
    assert not [target for target, _ in imports_of(path) if target != "errors" and not target.startswith("rules.")]


@pytest.mark.parametrize("name", ["openai", "anthropic", "taxonomy", "sse", "limits", "base"])
def test_a_codec_does_not_import_httpx(name: str) -> None:
    assert not outside_imports(PACKAGE / "providers" / f"{name}.py") & {"httpx", "aiohttp"}


def test_only_one_module_sends() -> None:
    """aiohttp appears in http.py, which sends, and in the simulated server, which only receives."""
    assert {name_of(p) for p in MODULES if "aiohttp" in outside_imports(p)} == {"providers.http", "sim.server"}


def test_only_the_pandas_boundary_imports_pandas() -> None:
    tables = {"frame", "stats", "plots", "journal", "history", "gauges", "accessor", "inputs", "chains", "fields"}
    tables |= {"compare", "sweep", "trial", "pilot", "twin", "tune", "tuning", "rest"}
    allowed = tables | {"lab", "streaming", "experiments", "factors", "cli.demo", "cli.files"}
    found = {name_of(path) for path in MODULES if "pandas" in outside_imports(path)}
    assert {name for name in found if name not in allowed and name.partition(".")[0] not in ("stats", "plots")} == set()
