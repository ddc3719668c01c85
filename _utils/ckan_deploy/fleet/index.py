"""The page of all runs of an environment: how long each took and how it went, over time, with its report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import jinja2

from ckan_deploy.fleet import history, report
from ckan_deploy.fleet.master import Master
from ckan_deploy.fleet.record import Record
from ckan_deploy.fleet.style import HEAD, STYLE
from ckan_deploy.releases import ids
from ckan_deploy.system import files

PAGE = (
    HEAD
    + """<body>
<main>
<h1>{{ title }}</h1>
<p>{% if wanted %}{{ env }} is on {{ wanted }}. {% endif %}
{{ runs | length }} run{{ '' if runs | length == 1 else 's' }}, {{ failed }} failed.
<span class="soft">Written {{ now }}.</span></p>
{% if lock %}<p class="warning">{{ lock }}</p>{% endif %}
{% if missing %}<p class="warning">{{ missing }}</p>{% endif %}
{% if bars %}<h2>Duration over time</h2>
<p class="soft">Each bar is a run, the newest on the right, as high as it took long; the highest is {{ longest }} s.
Bars from the top are runs that failed.</p>
<svg class="runs" role="img" aria-label="Duration and result of the last {{ bars | length }} runs">
<rect class="ground" width="100%" height="100%"/>
{% for bar in bars %}<rect class="bar {{ bar.class }}" x="{{ bar.x }}%" y="{{ bar.y }}%" width="{{ bar.width }}%"
 height="{{ bar.height }}%"><title>{{ bar.label }}</title></rect>
{% endfor %}</svg>
<p class="ends soft"><span>{{ runs[-1].at }}</span><span>{{ runs[0].at }}</span></p>{% endif %}
<h2>Runs</h2>
<table class="cards">
<thead><tr><th scope="col">at</th><th scope="col">what</th><th scope="col">release</th><th scope="col">by</th>
<th scope="col">hosts</th><th scope="col">duration</th><th scope="col">result</th></tr></thead>
<tbody>{% for run in runs %}<tr><th scope="row">
{%- if run.page %}<a href="{{ run.page }}">{{ run.at }}</a>{% else %}{{ run.at }}{% endif %}</th>
<td data-name="what">{{ run.kind }}{% if run.from %} from {{ run.from }}{% endif %}</td>
<td data-name="release">{{ run.release }}</td><td data-name="by">{{ run.by }}</td>
<td data-name="hosts">{{ run.hosts | join(', ') }}</td><td data-name="duration">{{ run.seconds }} s</td>
<td data-name="result" class="long {{ run.class }}">{{ run.result }}{% if run.reason %}: {{ run.reason }}{% endif %}
{%- for warning in run.warnings %}<br>warning: {{ warning }}{% endfor %}</td></tr>
{% else %}<tr><td>no run is known</td></tr>
{% endfor %}</tbody></table>
</main>
</body>
</html>
"""
)


def write(master: Master, env: Any, limit: int) -> tuple[str, str]:
    """
    Write the page of the runs of an environment, from the logs of its hosts and the reports that the master keeps.

    master
        The master.
    env
        The name of the environment.
    limit
        How many runs at most.

    Returns the path of the page, and which logs are not in it, ``''`` for none. Raises ``FormulaError`` where there is
    no such environment.
    """
    runs, missing = history.read(master, env, limit)
    record = Record(master, env)
    folder = report.folder(record.folder)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    path = os.path.join(folder, "index.html")
    files.write(path, page(record, runs, os.listdir(folder), missing), mode=0o600)
    return path, missing


def page(record: Record, runs: Sequence[dict[str, Any]], reports: Sequence[str], missing: str = "") -> str:
    """
    Return the page as HTML. All that comes from elsewhere is escaped.

    record
        What the master keeps of the environment.
    runs
        The runs, newest first, as ``history.merge`` returns them.
    reports
        The names of the reports that there are.
    missing
        Which logs are not in it.
    """
    by_job = {name.removesuffix(".html").rpartition("-")[2]: name for name in reports if name.endswith(".html")}
    rows = [
        {**run, "class": _class(run), "page": by_job.get(run.get("job", ""), ""), "warnings": run.get("warnings", [])}
        for run in runs
    ]
    lock = record.lock()
    template = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(PAGE)
    return template.render(
        style=STYLE, env=record.env, title=f"Deploys and rollbacks of {record.env}", runs=rows, bars=_bars(rows),
        longest=max((run["seconds"] for run in rows), default=0), missing=missing, now=ids.now(),
        failed=sum(run["result"] == "failed" for run in rows), wanted=record.wanted().get("release", ""),
        lock=lock.sentence() if lock else "",
    )  # fmt: skip


def _class(run: dict[str, Any]) -> str:
    return "failed" if run["result"] == "failed" else "warning" if run.get("warnings") else "ok"


def _bars(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A bar for each run, oldest first, in percent. Who sees no colours sees the failed ones hang from the top."""
    longest, width = max((run["seconds"] for run in rows), default=0) or 1, 80 / max(len(rows), 12)
    # From edge to edge, since the dates below are those of the first and the last.
    step, bars = (100 - width) / max(len(rows) - 1, 1), []
    for at, run in enumerate(reversed(rows)):
        height = max(2, 92 * run["seconds"] / longest)
        word = "with warnings" if run["class"] == "warning" else run["result"]
        bars.append({
            "x": round(at * step, 2), "width": round(width, 2), "height": round(height, 1),
            "y": 0 if run["class"] == "failed" else round(100 - height, 1), "class": run["class"],
            "label": f"{run['at']} {run['kind']} of {run['release']}: {run['seconds']} s, {word}",
        })  # fmt: skip
    return bars
