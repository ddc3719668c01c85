"""
The report of a run: one page of HTML on the master, without anything from elsewhere, to keep or to send.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jinja2

from ckan_deploy.fleet import maintenance
from ckan_deploy.fleet.run import Run, Span
from ckan_deploy.fleet.style import HEAD, STYLE
from ckan_deploy.system import files

# Reports of an environment that are kept.
KEPT = 50
# A pause between two stages that is worth a word, in seconds.
PAUSE = 1.0
PAGE = (
    HEAD
    + """<body>
<main>
<h1>{{ title }}</h1>
<p><span class="{{ result }}">{{ word }}</span></p>
<p>{{ text }}</p>
<table class="facts">
<tr><th scope="row">started by</th><td>{{ run.by }}</td></tr>
{% if source %}<tr><th scope="row">promoted from</th><td>{{ source }}</td></tr>{% endif %}
{% if run.reason %}<tr><th scope="row">reason</th><td>{{ run.reason }}</td></tr>{% endif %}
<tr><th scope="row">begun</th><td>{{ run.since }}</td></tr>
<tr><th scope="row">duration</th><td>{{ total }} s</td></tr>
{% if closed %}<tr><th scope="row">maintenance</th><td>visitors got the maintenance page for {{ closed }}</td></tr>
{%- endif %}
{% if backends %}<tr><th scope="row">backends</th><td>{{ backends }}</td></tr>{% endif %}
<tr><th scope="row">job</th><td>{{ run.job }}</td></tr>
<tr><th scope="row">hosts</th><td>{% for group in run.groups %}{{ group.hosts | join(', ') }}
{%- if group.name %} ({{ group.name }}){% endif %}{% if not loop.last %}, then {% endif %}{% endfor %}
{%- if run.down %}; down: {{ run.down | join(', ') }}{% endif %}</td></tr>
</table>
{% if failures %}<h2>What failed</h2>
<ul>{% for failure in failures %}<li class="failed">{{ failure.host }} at {{ failure.stage }}: {{ failure.cause }}</li>
{% endfor %}</ul>
{% for host, noted in run.noted.items() %}{% if noted.details %}
<details open><summary>What a program said on {{ host }}</summary>
<pre tabindex="0">{{ noted.details }}</pre></details>{% endif %}{% if noted.log %}
<details open><summary>The last lines of the log of {{ host }}</summary>
<pre tabindex="0">{{ noted.log | join('\\n') }}</pre></details>{% endif %}{% endfor %}{% endif %}
{% if run.warnings %}<h2>Warnings</h2>
<ul>{% for warning in run.warnings %}<li class="warning">{{ warning }}</li>
{% endfor %}</ul>{% endif %}
<h2>Hosts</h2>
<table class="cards">
<thead><tr><th scope="col">host</th>{% if grouped %}<th scope="col">group</th>{% endif %}<th scope="col">before</th>
<th scope="col">now</th><th scope="col">stages</th><th scope="col">result</th></tr></thead>
<tbody>{% for row in hosts %}<tr><th scope="row">{{ row.host }}</th>
{% if grouped %}<td data-name="group">{{ row.group }}</td>
{% endif %}<td data-name="before">{{ row.before }}</td><td data-name="now">{{ row.now }}</td>
<td data-name="stages" class="long">{{ row.stages }}</td>
<td data-name="result" class="long {{ row.class }}">{{ row.result }}</td></tr>
{% endfor %}</tbody></table>
<h2>What changed</h2>
<ul>{% for change in changes %}<li>{{ change }}</li>
{% else %}<li>nothing that is known</li>
{% endfor %}</ul>
{% for name, change in extensions %}<h3>{{ name }}: {{ change.count }} commit{{ '' if change.count == 1 else 's' }}</h3>
<ul>{% for commit in change.commits %}<li>{% if commit.page %}<a href="{{ commit.page }}" rel="noreferrer"><code>
{{- commit.commit[:12] }}</code></a>{% else %}<code>{{ commit.commit[:12] }}</code>{% endif %} {{ commit.subject }}
{%- if commit.author %} <small>{{ commit.author }}{% if commit.at %}, {{ commit.at[:10] }}{% endif %}</small>{% endif %}
</li>
{% endfor %}</ul>{% if change.count > change.commits | length %}
<p class="soft">and {{ change.count - change.commits | length }} older ones</p>{% endif %}
{% endfor %}
{% if packages %}<h3>Packages: {{ packages | length }}</h3>
<table class="cards"><thead>
<tr><th scope="col">package</th><th scope="col">before</th><th scope="col">now</th></tr></thead>
<tbody>{% for name, change in packages %}<tr><th scope="row">{{ name }}</th>
<td data-name="before">{{ change.old or 'none' }}</td><td data-name="now">{{ change.new or 'none' }}</td></tr>
{% endfor %}</tbody></table>{% endif %}
{% if options %}<h3>Options of CKAN</h3>
<table class="cards"><thead>
<tr><th scope="col">option</th><th scope="col">change</th><th scope="col">hosts</th></tr></thead>
<tbody>{% for row in options %}<tr><th scope="row">{{ row.name }}</th><td data-name="change">{{ row.kind }}</td>
<td data-name="hosts">{{ row.hosts | join(', ') }}</td></tr>
{% endfor %}</tbody></table>{% endif %}
<h2>Stages</h2>
<p class="soft">Each bar is a stage on a host, along the {{ total }} s of the run.
{%- if closed %} The shaded part is maintenance mode.{% endif %}</p>
{% for row in rows %}<div class="row"><span>{{ row.label }}</span>
<svg role="img" aria-label="{{ row.label }}: {{ row.seconds }} s, {{ row.result }}">
<rect class="ground" width="100%" height="100%"/>
{%- for part in shades %}<rect class="shade" x="{{ part.x }}%" width="{{ part.width }}%" height="100%"/>{% endfor %}
<rect class="bar {{ row.result }}" x="{{ row.x }}%" width="{{ row.width }}%" height="100%"/></svg>
<span>{{ row.seconds }} s</span></div>
{% endfor %}
{% if pauses %}<ul>{% for pause in pauses %}<li class="soft">{{ pause }}</li>
{% endfor %}</ul>{% endif %}
</main>
</body>
</html>
"""
)
WORDS = {"done": "live", "revert": "failed, reverted", "refused": "refused"}


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
    kept = folder(run.record.folder)
    os.makedirs(kept, mode=0o700, exist_ok=True)
    path = os.path.join(kept, f"{run.release}-{run.kind}-{run.job}.html")
    files.write(path, page(run, how, text), mode=0o600)
    # By job, which is a time: two runs may be of one release.
    reports = [name for name in os.listdir(kept) if name != "index.html"]
    for old in sorted(reports, key=lambda name: name.rpartition("-")[2])[:-KEPT]:
        os.unlink(os.path.join(kept, old))
    return path


def folder(record: str) -> str:
    """
    Return where the reports of an environment are.

    record
        The directory that the master keeps of it.
    """
    return os.path.join(record, "reports")


def page(run: Run, how: str, text: str) -> str:
    """
    Return the report of a run as HTML. All that comes from elsewhere, such as subjects of commits, is escaped.

    run, how, text
        As for ``write``.
    """
    begin = min((span.at for span in run.spans), default=0.0)
    total = max((span.at + span.seconds for span in run.spans), default=0.0) - begin
    closed = _closed(run, begin + total)
    details, failed = run.details, how != "done"
    template = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(PAGE)
    return template.render(
        style=STYLE, run=run, title=title(run, how), text=text, total=round(total, 1), word=WORDS[how],
        result="failed" if failed else "warning" if run.warnings or run.down or run.unsteady else "ok",
        source=f"{run.source_release} of {run.source}" if run.source else "", failures=run.failures,
        changes=[*run.changes, *run.differs], hosts=_hosts(run, how), grouped=any(part.name for part in run.groups),
        extensions=[(name, change) for name, change in details.get("extensions", {}).items() if change.get("commits")],
        packages=sorted(details.get("packages", {}).items()), options=_options(details.get("configuration", {})),
        rows=[_row(span, begin, total) for span in run.spans], shades=[_place(*part, begin, total) for part in closed],
        closed=" and ".join(f"{round(seconds, 1)} s" for _, seconds in closed), pauses=_pauses(run),
        backends=", ".join(f"{name} {version}" for name, version in sorted(run.backends.items())),
    )  # fmt: skip


def title(run: Run, how: str) -> str:
    """
    Say what a run did, in a few words.

    run, how
        As for ``write``.
    """
    stages = " and ".join(dict.fromkeys(failure.stage for failure in run.failures))
    at = f" at {stages}" if stages else ""
    if run.kind == "rollback":
        left = _all_of(dict.fromkeys(name for name in run.left.values() if name != run.release))
        from_ = f" from {left}" if left else ""
        if how == "done":
            return f"Rolled back {run.env}{from_} to {run.release}"
        return f"Rollback of {run.env}{from_} to {run.release} {'was refused' if how == 'refused' else f'failed{at}'}"
    before = _all_of(dict.fromkeys(filter(None, run.before.values())))
    if how == "done":
        return f"Deployed {run.release} to {run.env}{f' in place of {before}' if before else ''}"
    if how == "refused":
        return f"Deploy of {run.release} to {run.env} was refused"
    back = _all_of(dict.fromkeys(filter(None, run.serves.values())))
    return f"Deploy of {run.release} to {run.env} failed{at}{f', back on {back}' if back else ''}"


def _all_of(names: Mapping[str, None]) -> str:
    return " and ".join(names)


def _hosts(run: Run, how: str) -> list[dict[str, Any]]:
    """A row for each host: what it was on and is on, how long it took, and how it went there."""
    before = run.before if run.kind == "deploy" else run.left
    group = {host: part.name for part in run.groups for host in part.hosts}
    rows = []
    for host in run.hosts:
        mine = [span for span in run.spans if span.host == host]
        failure = next((one for one in run.failures if one.host == host), None)
        unsteady = [what for what in run.unsteady if what.startswith(f"{host}: ")]
        now = run.release if how == "done" else run.serves.get(host, "not known")
        word = f"failed at {failure.stage}" if failure else "not all stays up" if unsteady else "ok"
        if how == "revert" and not failure:
            word = "reverted" if host in run.serves else "not reverted"
        rows.append({
            "host": host, "group": group.get(host, ""), "before": before.get(host) or "none", "now": now or "none",
            "stages": ", ".join(f"{span.stage} {round(span.seconds, 1)} s" for span in mine) or "none",
            "result": word, "class": "failed" if failure or unsteady else "ok" if word == "ok" else "warning",
        })  # fmt: skip
    about = {"group": "", "before": "not known", "now": "not known", "stages": "none", "class": "warning"}
    return [*rows, *({"host": host, "result": "was down", **about} for host in run.down)]


def _options(configuration: Mapping[str, Mapping[str, list[str]]]) -> list[dict[str, Any]]:
    """Names of options, never a value."""
    return [
        {"name": name, "kind": kind, "hosts": hosts}
        for kind, names in configuration.items()
        for name, hosts in sorted(names.items())
    ]


def _row(span: Span, begin: float, total: float) -> dict[str, Any]:
    label = f"{span.stage} {span.host}".strip()
    place = _place(span.at, span.seconds, begin, total)
    return {"label": label, "seconds": round(span.seconds, 1), "result": span.result, **place}


def _place(at: float, seconds: float, begin: float, total: float) -> dict[str, float]:
    """Where a bar begins along the run, and how wide it is, in percent; never so narrow that nobody sees it."""
    width = max(0.4, 100 * seconds / (total or 1))
    return {"x": round(min(100 * (at - begin) / (total or 1), 100 - width), 2), "width": round(width, 2)}


def _closed(run: Run, end: float) -> list[tuple[float, float]]:
    """When the run had turned maintenance mode on, and for how many seconds."""
    found, since = [], None
    for span in sorted(run.spans, key=lambda span: span.at):
        if span.stage == maintenance.ON:
            since = span.at + span.seconds
        elif span.stage == maintenance.OFF and since is not None:
            found.append((since, span.at + span.seconds - since))
            since = None
    return [*found, *([(since, end - since)] if since is not None else [])]


def _pauses(run: Run) -> list[str]:
    """What the parts of the run mean in which no bar is."""
    said, last = [], None
    for span in sorted(run.spans, key=lambda span: span.at):
        if last and (pause := span.at - (last.at + last.seconds)) >= PAUSE:
            said.append(
                f"{round(pause, 1)} s between {last.stage} and {span.stage}: the master was between two steps, no host "
                "was at work"
            )
        if not last or span.at + span.seconds > last.at + last.seconds:
            last = span
    return said
