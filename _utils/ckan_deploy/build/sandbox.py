"""
The sandbox: where code of others runs, when a release is built and looked at.

bubblewrap gives it namespaces of its own: it sees the system, what it is lent and nothing else of this host, writes
into the directories that it is given and nowhere else, and whatever it started ends with it. It runs as the build user,
without capabilities and within limits.

Where no namespaces can be had, ``ckan:build:sandbox: user`` leaves the build user and the limits; SECURITY.md says what
is not kept from the code then.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath

from attrs import frozen

from ckan_deploy.errors import FormulaError
from ckan_deploy.settings.model import Settings
from ckan_deploy.system import processes
from ckan_deploy.system.processes import Done

# Of /etc: what programs need to run at all. With a network also how names are found.
ETC = (
    "alternatives", "ca-certificates", "group", "hosts", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime",
    "mime.types", "nsswitch.conf", "passwd", "pki", "ssl",
)  # fmt: skip
TOP = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
PATH = "/usr/local/bin:/usr/bin:/bin"
# What one file may be large, in MB.
FILE_MB = 2048


@frozen
class Sandbox:
    """
    Where code of others runs.

    kind
        ``bubblewrap``, or ``user`` for no more than another user.
    user
        Who runs it; ``''`` for whoever runs this, where that is not root.
    hidden
        Directories that it must not see, below what it sees of the system.
    network
        Whether a build reaches the network.
    memory_mb, processes, seconds
        What one process may have of memory, how many processes there may be, and how long it may take.
    environment
        Variables of builds; they are passed by a file that nobody else sees, since a proxy may have a password.
    """

    kind: str = "bubblewrap"
    user: str = ""
    hidden: tuple[str, ...] = ()
    network: bool = False
    memory_mb: int = 4096
    processes: int = 512
    seconds: int = 1800
    environment: Mapping[str, str] = {}

    @classmethod
    def of(cls, settings: Settings) -> Sandbox:
        """
        Take it from the settings of a host.

        settings
            The settings.
        """
        about = settings.build
        return cls(
            kind=about.sandbox,
            user=settings.build_user if os.geteuid() == 0 else "",
            hidden=(settings.paths.home, settings.paths.shared),
            network=about.network,
            memory_mb=about.memory_mb,
            processes=about.processes,
            seconds=about.timeout,
            environment=about.environment,
        )

    def run(
        self, command: Sequence[str], reads: Iterable[str] = (), writes: str = "", env: Mapping[str, str] | None = None,
        network: bool = False,
    ) -> Done:  # fmt: skip
        """
        Run a program in the sandbox.

        command
            The program and its arguments.
        reads
            Files and directories that it may read, beside the system's.
        writes
            The directory that it may write to, the build user's own; it runs there.
        env
            Its variables, beside PATH, HOME, LANG and TMPDIR.
        network
            Whether this program is a build: it has the variables of builds, and reaches the network where the settings
            allow that.

        Returns ``Done``. Raises ``FormulaError`` where the sandbox cannot be had.
        """
        variables = {"PATH": PATH, "HOME": "/tmp", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", **(env or {})}
        limited, passed = [*self._limits(), *command], self.environment if network else {}
        with _lent(passed, self.kind) as lent_fd:
            return self._run(limited, variables, lent_fd, reads, writes, network, command[0])

    def _run(
        self, limited: list[str], variables: Mapping[str, str], passed: int, reads: Iterable[str], writes: str,
        network: bool, program: str,
    ) -> Done:  # fmt: skip
        """``passed`` is the open file with further variables, -1 for none."""
        fds = [passed] if passed >= 0 else []
        if self.kind == "user":
            variables = {**variables, "HOME": writes or "/nonexistent"}
            clean = ["env", "-i", *(f"{name}={value}" for name, value in variables.items())]
            if fds:
                limited = ["sh", "-c", f'. /dev/fd/{passed}; exec "$@"', "sh", *limited]
            return processes.run(
                [*clean, *limited], user=self.user, cwd=writes or "/", timeout=self.seconds, pass_fds=fds
            )
        options = [*_system(), *self._kept_apart(network)]
        for path in self.hidden:
            options += ["--tmpfs", path] if _is_in_sight(path) else []
        lent = sorted({*reads, *_beside_system(program)})
        options += _parents([*lent, *filter(None, [writes])])
        for path in lent:
            options += ["--ro-bind", path, path]
        options += ["--bind", writes, writes, "--chdir", writes] if writes else ["--chdir", "/"]
        for name, value in variables.items():
            options += ["--setenv", name, value]
        options += ["--args", str(passed)] if fds else []
        drop = []
        if os.geteuid() == 0:
            entry = _entry(self.user)
            options += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
            drop = [
                "setpriv",
                f"--reuid={entry.pw_uid}",
                f"--regid={entry.pw_gid}",
                "--clear-groups",
                "--inh-caps=-all",
            ]
        else:
            options += ["--unshare-user"]
        return processes.run(["bwrap", *options, "--", *drop, *limited], timeout=self.seconds, pass_fds=fds)

    def over_time(self, done: Done) -> str:
        """
        Say that a program was ended for its time, '' where it was not.

        done
            What ``run`` returned.
        """
        if done.retcode == 1 and not done.stderr and re.search(r" : Timed out after [\d.e+]+ seconds$", done.stdout):
            return f"took longer than {self.seconds} s (ckan:build:timeout), and was ended"
        return ""

    def problem(self) -> str:
        """Say why there can be no sandbox on this host, ``''`` for nothing."""
        if self.kind == "user":
            return ""
        way_out = "set ckan:build:sandbox to user (SECURITY.md says what that means)"
        if not shutil.which("bwrap"):
            return f"bubblewrap is not installed, and extensions are built in it; run state.apply ckan, or {way_out}"
        done = self.run(["true"])
        if done.retcode == 0:
            return ""
        return (
            f"bubblewrap cannot make namespaces here ({processes.tail(done, 1)}); a container needs CAP_SYS_ADMIN and "
            f"CAP_NET_ADMIN; or {way_out}"
        )

    def _limits(self) -> list[str]:
        return [
            "prlimit", f"--data={self.memory_mb * 2**20}", f"--nproc={self.processes}", f"--fsize={FILE_MB * 2**20}",
            "--core=0", "--nofile=4096", "--",
        ]  # fmt: skip

    def _kept_apart(self, network: bool) -> list[str]:
        options = ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
        if network and self.network:
            return [*options, "--ro-bind-try", "/etc/resolv.conf", "/etc/resolv.conf"]
        return [*options, "--unshare-net"]


@contextlib.contextmanager
def _lent(variables: Mapping[str, str], kind: str) -> Iterator[int]:
    """A file with variables, as bubblewrap or a shell reads them; yields -1 for none."""
    if not variables:
        yield -1
        return
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
    words = [f"{word}\0" for name, value in variables.items() for word in ("--setenv", name, value)]
    fd = os.memfd_create("variables")
    try:
        os.write(fd, "".join(lines if kind == "user" else words).encode())
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


@functools.cache
def _system() -> list[str]:
    """Options of bubblewrap that show the system: its programs and libraries, and nothing that is of this host."""
    options = ["--die-with-parent", "--new-session", "--clearenv", "--ro-bind", "/usr", "/usr"]
    for name in TOP:
        path = f"/{name}"
        if os.path.islink(path):
            options += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            options += ["--ro-bind", path, path]
    options += ["--perms", "0755", "--dir", "/etc", "--perms", "1777", "--tmpfs", "/tmp"]
    for name in ETC:
        options += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    return [*options, "--proc", "/proc", "--dev", "/dev"]


def _parents(paths: Iterable[str]) -> list[str]:
    """Options that make the directories above some paths: bubblewrap's own are closed to whoever is not root."""
    above = {str(parent) for path in paths for parent in PurePath(path).parents}
    return [word for path in sorted(above - {"/", "/tmp", "/usr"}) for word in ("--perms", "0755", "--dir", path)]


def _is_in_sight(path: str) -> bool:
    """Whether a directory lies below what the sandbox shows of the system; all else it does not see anyway."""
    return path.startswith(("/usr/", *(f"/{name}/" for name in TOP))) and os.path.isdir(path)


def _beside_system(program: str) -> list[str]:
    """The Python of a virtualenv may stand beside the system's, such as in /opt: the directory that it needs."""
    real = os.path.realpath(program)
    if not os.path.basename(real).startswith("python") or real.startswith(("/usr/", "/bin/")):
        return []
    return [os.path.dirname(os.path.dirname(real))]


def _entry(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError as exc:
        raise FormulaError(f"there is no user {user} (ckan:build_user); run state.apply ckan first.") from exc
