"""How the pages look that the master writes: on screens of any width, light or dark, and on paper."""

from __future__ import annotations

# All pairs of text and ground have a contrast of 4.5 and more, bars one of 3 to the ground (WCAG AA).
STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --ground: #fff; --soft: #59636e; --line: #d1d9e0; --box: #f6f8fa;
  --link: #0550ae; --ok: #1a7f37; --warning: #9a6700; --failed: #c62828; --shade: #fff3c4; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --ground: #0d1117; --soft: #9da7b3; --line: #3d444d;
  --box: #161b22; --link: #79b8ff; --ok: #3fb950; --warning: #d9a521; --failed: #ff7b72; --shade: #4a3c0b; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 72em; padding: 1em; color: var(--text);
  background: var(--ground); overflow-wrap: anywhere; }
h1 { font-size: 1.5em; line-height: 1.3; } h2 { font-size: 1.15em; margin: 2em 0 .5em; } h3 { font-size: 1em; }
a { color: var(--link); }
ul { padding-left: 1.3em; } li { margin: .15em 0; }
small, .soft { color: var(--soft); font-size: .9em; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .3em .8em .3em 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  overflow-wrap: normal; }
td.long, .facts td { overflow-wrap: anywhere; } .cards tbody th { white-space: nowrap; }
table.facts { width: auto; } .facts th { font-weight: 600; white-space: nowrap; }
.ok { color: var(--ok); } .warning { color: var(--warning); } .failed { color: var(--failed); }
rect.ok { fill: var(--ok); } rect.warning { fill: var(--warning); } rect.failed { fill: var(--failed); }
rect.shade { fill: var(--shade); } rect.ground { fill: var(--box); }
pre { background: var(--box); border: 1px solid var(--line); padding: .7em; font-size: .85em; white-space: pre-wrap; }
code { font-size: .92em; }
summary { cursor: pointer; }
.row { display: grid; grid-template-columns: 16em 1fr 5em; gap: .6em; align-items: center; margin: .15em 0; }
.row svg { width: 100%; height: 1.1em; display: block; } .row span:last-child { text-align: right; }
svg.runs { width: 100%; height: 9em; display: block; border-bottom: 1px solid var(--line); }
.ends { display: flex; justify-content: space-between; gap: 1em; }
@media (max-width: 800px) {
  .row { grid-template-columns: 1fr 4.5em; } .row svg { grid-column: 1 / 3; grid-row: 2; }
  .cards thead { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; }
  .cards tr { display: block; padding: .5em 0; border-bottom: 1px solid var(--line); }
  .cards td, .cards th { display: block; border: 0; padding: .05em 0; overflow-wrap: anywhere; }
  .cards [data-name]::before { content: attr(data-name) ": "; color: var(--soft); font-weight: 400; }
  .facts th, .facts td { display: block; padding: 0; border: 0; } .facts th { padding-top: .4em; }
}
@media print { :root { color-scheme: light; } details > * { display: block; } }
"""

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<meta name="referrer" content="no-referrer">
<title>{{ title }}</title>
<style>{{ style | safe }}</style>
</head>
"""
