"""
The report of a run: one page of HTML on the master, without anything from elsewhere, to keep or to send.
"""

from __future__ import annotations

import os

import jinja2

from ckan_deploy.fleet.run import Run
from ckan_deploy.system import files

# Reports of an environment that are kept.
KEPT = 50
COLORS = {"ok": "#2e7d32", "warning": "#e08e0b", "failed": "#c62828"}
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{{ kind }} of {{ release }} to {{ env }}: {{ word }}</title>
<style>
body { font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em; color: #222; }
h1 { font-size: 1.4em; } h2 { font-size: 1.1em; margin-top: 1.6em; }
table { border-collapse: collapse; } td, th { padding: .2em 1em .2em 0; text-align: left; vertical-align: top; }
.ok { color: #2e7d32; } .warning { color: #b06f00; } .failed { color: #c62828; }
svg text { font: 12px sans-serif; fill: #222; }
</style>
</head>
<body>
<h1>{{ kind | capitalize }} of {{ release }} to {{ env }}: <span class="{{ result }}">{{ word }}</span></h1>
<p>{{ text }}</p>
<table>
<tr><th>started by</th><td>{{ by }}</td></tr>
{% if source %}<tr><th>promoted from</th><td>{{ source }}</td></tr>{% endif %}
{% if reason %}<tr><th>reason</th><td>{{ reason }}</td></tr>{% endif %}
<tr><th>begun</th><td>{{ since }}</td></tr>
<tr><th>duration</th><td>{{ total }} s</td></tr>
{% if backends %}<tr><th>behind CKAN</th><td>{{ backends }}</td></tr>{% endif %}
<tr><th>job</th><td>{{ job }}</td></tr>
<tr><th>hosts</th><td>{% for group in groups %}{{ group.hosts | join(', ') }}
{%- if group.name %} ({{ group.name }}){% endif %}{% if not loop.last %}, then {% endif %}{% endfor %}
{%- if down %}; down: {{ down | join(', ') }}{% endif %}</td></tr>
</table>
{% if warnings %}<h2>Warnings</h2>
<ul>{% for warning in warnings %}<li class="warning">{{ warning }}</li>{% endfor %}</ul>{% endif %}
<h2>What changed</h2>
<ul>{% for change in changes %}<li>{{ change }}</li>{% else %}<li>nothing that is known</li>{% endfor %}</ul>
{% if failures %}<h2>What failed</h2>
<ul>{% for failure in failures %}<li class="failed">{{ failure.host }} at {{ failure.stage }}: {{ failure.cause }}</li>
{% endfor %}</ul>{% endif %}
<h2>Stages</h2>
<svg viewBox="0 0 900 {{ rows | length * 20 + 24 }}" role="img" aria-label="The stages of each host along time">
{% for row in rows %}<text x="0" y="{{ loop.index * 20 - 5 }}">{{ row.label }}</text>
<rect x="{{ row.x }}" y="{{ loop.index * 20 - 17 }}" width="{{ row.width }}" height="15" fill="{{ row.color }}">
<title>{{ row.label }}: {{ row.seconds }} s, {{ row.result }}</title></rect>
<text x="{{ row.after }}" y="{{ loop.index * 20 - 5 }}">{{ row.seconds }} s</text>
{% endfor %}</svg>
</body>
</html>
"""


def write(run: Run, how: str, text: str) -> str:
    """
    Write the report of a run that has ended.

    run
        The run.
    how
        ``done``, ``revert`` or ``refused``.
    text
        How it ended, in a sentence.

    Returns the path of the page.
    """
    folder = os.path.join(run.record.folder, "reports")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    path = os.path.join(folder, f"{run.release}-{run.kind}-{run.job}.html")
    files.write(path, page(run, how, text), mode=0o600)
    # By job, which is a time: two runs may be of one release.
    for old in sorted(os.listdir(folder), key=lambda name: name.rpartition("-")[2])[:-KEPT]:
        os.unlink(os.path.join(folder, old))
    return path


def page(run: Run, how: str, text: str) -> str:
    """
    Return the report of a run as HTML. All that comes from elsewhere, such as subjects of commits, is escaped.

    run, how, text
        As for ``write``.
    """
    begin = min((span.at for span in run.spans), default=0.0)
    total = max((span.at + span.seconds for span in run.spans), default=0.0) - begin
    rows = []
    for span in run.spans:
        x = 190 + 620 * (span.at - begin) / (total or 1)
        width = max(2, 620 * span.seconds / (total or 1))
        rows.append(
            {
                "label": f"{span.stage} {span.host}".strip(), "x": round(x), "width": round(width),
                "after": round(x + width + 5), "seconds": round(span.seconds, 1), "result": span.result,
                "color": COLORS[span.result],
            }
        )  # fmt: skip
    result = "failed" if how != "done" else "warning" if run.warnings or run.down or run.unsteady else "ok"
    words = {"done": "live", "revert": "failed, reverted", "refused": "refused"}
    template = jinja2.Environment(autoescape=True).from_string(PAGE)
    return template.render(
        kind=run.kind, release=run.release, env=run.env, by=run.by, reason=run.reason, since=run.since, job=run.job,
        source=f"{run.source_release} of {run.source}" if run.source else "", down=run.down, groups=run.groups,
        changes=[*run.changes, *run.differs], failures=run.failures, rows=rows, text=text, total=round(total, 1),
        result=result, word=words[how], warnings=run.warnings,
        backends=", ".join(f"{name} {version}" for name, version in sorted(run.backends.items())),
    )  # fmt: skip
