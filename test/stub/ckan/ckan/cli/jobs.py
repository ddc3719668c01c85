"""A worker whose queues are directories, and which treats signals and jobs as the real one (of RQ) does."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from ckan.common import config


def work(queues: list[str]) -> None:
    """Run jobs until TERM comes, and then the one under way to its end.

    The option `stub.jobs` names a directory. A job is a file `QUEUE/NAME.job` in it that holds seconds to take; what is
    done is noted in `done`: name of the job, and the release that did it.
    """
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    place = Path(config["stub.jobs"])
    while not stop:
        for job in [job for queue in queues for job in sorted((place / queue).glob("*.job"))][:1]:
            mine = job.with_suffix(f".{os.getpid()}")
            try:
                job.rename(mine)
            except FileNotFoundError:
                continue  # another worker was first
            seconds = float(mine.read_text())
            if not os.fork():
                # The job runs in a process group of its own.
                os.setpgrp()
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                (place / f"{job.stem}.begun").touch()
                time.sleep(seconds)
                with (place / "done").open("a") as done:
                    done.write(f"{job.stem} {os.path.basename(sys.prefix)}\n")
                os._exit(0)
            os.wait()
        time.sleep(0.05)
