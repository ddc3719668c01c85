"""git is killed at the n-th call of the kernel of one of its processes, while it fetches; alone, or with the deploy."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from crash.after import follows, undisturbed
from crash.rig import WORK, Rig

pytestmark = pytest.mark.crash

CALLS = "openat,write,mkdir,rename,link,unlink,fsync,fdatasync,ftruncate,chmod,close"
# In place of git: a fetch is watched, and killed where that is asked for, with whoever has started it.
PROGRAM = """\
#!/bin/sh
case " $* " in *" fetch "*) ;; *) exec {git} "$@";; esac
{strace} -f -qq -o "$CRASH_TRACE" -e trace={calls} $CRASH_INJECT {git} "$@"
code=$?
if [ $code -ge 128 ] && [ -n "$CRASH_PARENT" ]; then kill -9 $PPID; fi
exit $code
"""
KINDS = {"first-fetch": ("first-deploy", 40), "fetch": ("build", 40)}
POINTS = [(name, number) for name, (_, count) in KINDS.items() for number in range(1, count + 1)]
_CALLS: dict[str, list[tuple[str, int]]] = {}


def shim(rig: Rig) -> dict[str, str]:
    """Variables that put that program in the place of git."""
    program = rig.top / "shim/git"
    program.parent.mkdir(exist_ok=True)
    git, strace = shutil.which("git"), shutil.which("strace")
    program.write_text(PROGRAM.format(git=git, strace=strace, calls=CALLS))
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:{os.environ['PATH']}", "CRASH_TRACE": str(rig.top / "trace")}


def calls_of(rig: Rig, name: str) -> list[tuple[str, int]]:
    """The calls of an undisturbed fetch: for each kind of call the first to the last of the process with most."""
    if name not in _CALLS:
        state, work, _ = WORK[KINDS[name][0]]
        rig.bring(state)
        running = rig.run(work, env=shim(rig))
        assert not running.wait().said
        running.settle()
        counts: Counter[tuple[str, str]] = Counter()
        for line in Path(rig.top / "trace").read_text().splitlines():
            if found := re.match(r"(\d+) +(\w+)\(", line):
                counts[found[1], found[2]] += 1
        most = {call: max(n for (_, c), n in counts.items() if c == call) for _, call in counts}
        _CALLS[name] = [(call, n) for call, count in sorted(most.items()) for n in range(1, count + 1)]
        assert {"openat", "write"} <= set(most), most
    return _CALLS[name]


@pytest.mark.parametrize(("name", "number"), POINTS, ids=[f"{name}-{number}" for name, number in POINTS])
def test_killed_fetch(rig: Rig, name: str, number: int):
    of, count = KINDS[name]
    state, work, _ = WORK[of]
    before, calls = undisturbed(rig, of), calls_of(rig, name)
    rig.bring(state)
    whole = rig.whole()
    call, n = calls[(number - 1) * len(calls) // count]
    env = {**shim(rig), "CRASH_INJECT": f"-e inject={call}:signal=KILL:when={n}"}
    if number % 2:
        env["CRASH_PARENT"] = "1"
    running = rig.run(work, env=env)
    ended = running.wait()
    running.settle()
    where = f"git was killed at {call} {n} in a {name}{', with the deploy' if number % 2 else ''} ({ended.said})"
    broken = rig.broken(whole)
    assert (ended.killed or ended.said) and not broken, f"{where}; {'; '.join(broken)}"
    follows(rig, before, where)
