"""What a build depends on, what its commands make, and translations that nobody has compiled."""

from __future__ import annotations

import gettext
import os
import subprocess
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError

from functional.steps import deployed, extension
from parts.base import uv_path
from stub import repos

pytestmark = pytest.mark.slow

SCM = """
[build-system]
requires = ["setuptools>=80", "setuptools-scm>=8"]
build-backend = "setuptools.build_meta"

[project]
name = "ckanext-alpha"
dynamic = ["version"]

[project.entry-points."ckan.plugins"]
alpha = "ckanext.alpha.plugin:Plugin"

[tool.setuptools_scm]

[tool.setuptools.packages.find]
include = ["ckanext.*"]
"""
PO = """
msgid ""
msgstr ""
"Language: de\\n"
"Content-Type: text/plain; charset=utf-8\\n"
"Plural-Forms: nplurals=2; plural=(n != 1);\\n"

msgid "Tree"
msgstr "{tree}"

msgid "a tree"
msgid_plural "trees"
msgstr[0] "ein Baum"
msgstr[1] "Bäume"

#, fuzzy
msgid "House"
msgstr "Maus"
"""


@pytest.fixture
def alpha(host, origins) -> Path:
    """An extension that the pillar lists."""
    repo = repos.make_repo(origins, "alpha", "Alpha", backend="uv_build")
    host.pillar["extensions"] = {"ckanext-alpha": extension(repo)}
    host.pillar["plugins"] = ["alpha"]
    return repo


def commit(repo: Path, **content: str) -> None:
    """Commit files; `a__b` stands for a/b, and a name that begins with `i18n` for one of the translations."""
    for name, text in content.items():
        path = repo / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    repos.git(repo, "add", "-Af")
    repos.git(repo, "commit", "-qm", "files")


def source(host, release: str) -> Path:
    return host.home / "releases" / release / "src/ckanext-alpha"


def refused(host) -> str:
    with pytest.raises(CommandExecutionError) as failure:
        host.deploy()
    assert "\n" not in str(failure.value)
    return str(failure.value)


def test_f20_a_commit_that_gets_a_tag_later_is_another_version(host, alpha):
    commit(alpha, **{"pyproject.toml": SCM, ".gitignore": "*.egg-info\n"})
    repos.tag(alpha, "v1.2.0")
    host.pillar["extensions"]["ckanext-alpha"]["ref"] = "v1.2.0"
    version = "import importlib.metadata as m; print(m.version('ckanext-alpha'))"
    assert host.python(deployed(host), version) == "1.2.0"
    repos.commit_change(alpha, "Alpha two")
    host.pillar["extensions"]["ckanext-alpha"]["ref"] = "main"
    second = deployed(host)
    assert host.python(second, version).startswith("1.2.1.dev1+g")
    assert host.plan()["changes"] == []
    repos.tag(alpha, "v1.3.0")
    planned = host.plan()["changes"]
    assert len(planned) == 1 and "its tags have changed, and so may its version" in planned[0]
    host.pillar["extensions"]["ckanext-alpha"]["ref"] = "v1.3.0"
    assert host.python(deployed(host), version) == "1.3.0"
    assert host.plan()["changes"] == []
    # The older release can still be gone back to, and nothing of it was rebuilt.
    assert host.python(second, version).startswith("1.2.1.dev1+g")
    # A tag that comes later than the commit is none of its business.
    host.pillar["extensions"]["ckanext-alpha"]["ref"] = repos.git(alpha, "rev-parse", "HEAD")
    repos.commit_change(alpha, "Alpha three")
    repos.tag(alpha, "v2.0.0")
    assert host.python(deployed(host), version) == "1.3.0"


def test_f20_a_tag_is_no_change_where_the_version_does_not_come_from_git(host, alpha):
    first = deployed(host)
    repos.tag(alpha, "v9.0.0")
    assert host.plan()["changes"] == []
    assert source(host, first).is_dir()


def test_f20_the_network_the_requirements_and_the_tools_of_a_build_are_in_its_key(host, alpha):
    commit(alpha, **{"pyproject.toml": SCM.replace('dynamic = ["version"]', 'version = "1.0"').replace(
        '"setuptools-scm>=8"', '"wheel"').replace("[tool.setuptools_scm]", "")})  # fmt: skip
    host.plan()
    wheels = host.home / "shared/sources"
    one = set(wheels.rglob("*.whl"))
    host.plan()
    assert set(wheels.rglob("*.whl")) == one and len(one) == 1
    host.pillar["build"] = {"network": True}
    host.plan()
    two = set(wheels.rglob("*.whl"))
    assert len(two) == 2
    # As where the environment was made anew, with a newer tool.
    info = next((host.home / "shared/environments").glob("*/lib/python3*/site-packages/wheel-*.dist-info"))
    info.rename(info.with_name("wheel-999.dist-info"))
    host.plan()
    assert len(set(wheels.rglob("*.whl"))) == 3


@pytest.fixture
def babel(host, own_base) -> None:
    """CKAN's own dependency, in a base of the test."""
    subprocess.run([uv_path(), "pip", "install", "-q", "-p", own_base / "bin/python", "babel"], check=True)


def german(host, release: str, text: str) -> str:
    found = gettext.translation("ckanext-alpha", source(host, release) / "ckanext/alpha/i18n", ["de"])
    return found.gettext(text)


def test_f21_translations_that_exist_as_text_only_are_compiled(host, alpha, babel):
    folder = "ckanext__alpha__i18n__de__LC_MESSAGES__ckanext-alpha"
    commit(alpha, **{f"{folder}.po": PO.format(tree="Baum"), ".gitignore": "*.mo\n"})
    commit(
        alpha, **{"elsewhere__de__LC_MESSAGES__x.po": PO, "ckanext__alpha__i18n__fr__LC_MESSAGES__x.po": "no po\x00"}
    )
    release = deployed(host)
    assert (german(host, release, "Tree"), german(host, release, "House")) == ("Baum", "House")
    compiled = [str(path.relative_to(source(host, release))) for path in source(host, release).rglob("*.mo")]
    assert compiled == ["ckanext/alpha/i18n/de/LC_MESSAGES/ckanext-alpha.mo"]
    about = (source(host, release) / compiled[0]).stat()
    assert (about.st_uid, about.st_mode & 0o7777) == (0, 0o644)
    # In the release only: the checkout is what git gives.
    checkout = next(path for path in (host.home / "shared/sources").glob("*/*") if len(path.name) == 40)
    assert list(checkout.rglob("*.mo")) == []
    assert "i18n" not in repos.git(source(host, release), "status", "--porcelain")


def test_f21_a_compiled_translation_is_made_anew_only_where_it_lacks_something(host, alpha, babel):
    place = alpha / "ckanext/alpha/i18n/de/LC_MESSAGES"
    place.mkdir(parents=True)
    (place / "ckanext-alpha.po").write_text(PO.format(tree="Baum"))
    command = ["msgfmt", "--use-fuzzy", "-o", place / "ckanext-alpha.mo", place / "ckanext-alpha.po"]
    subprocess.run(command, check=True)
    commit(alpha)
    compiled = (place / "ckanext-alpha.mo").read_bytes()
    release = deployed(host)
    made = source(host, release) / "ckanext/alpha/i18n/de/LC_MESSAGES/ckanext-alpha.mo"
    assert made.read_bytes() == compiled and german(host, release, "House") == "Maus"
    commit(alpha, **{"ckanext__alpha__i18n__de__LC_MESSAGES__ckanext-alpha.po": PO.format(tree="Eiche")})
    assert german(host, deployed(host), "Tree") == "Eiche"


BUNDLE = "mkdir -p ckanext/alpha/public && tr a-z A-Z < bundle.txt > ckanext/alpha/public/bundle.js"


def test_f21_build_commands_make_what_is_in_the_release_and_in_the_wheel(host, alpha):
    commit(alpha, **{"bundle.txt": "hello", ".gitignore": "*.js\n"})
    host.pillar["extensions"]["ckanext-alpha"]["build"] = [
        BUNDLE, "touch ran && chmod 4777 ran && ln -s bundle.txt inside && mkfifo pipe && id -un > who",
    ]  # fmt: skip
    release = deployed(host)
    tree = source(host, release)
    assert (tree / "ckanext/alpha/public/bundle.js").read_text() == "HELLO"
    assert (tree / "who").read_text() == "nobody\n" and os.readlink(tree / "inside") == "bundle.txt"
    about = (tree / "ran").lstat()
    assert (about.st_uid, about.st_mode & 0o7777) == (0, 0o755) and not os.path.lexists(tree / "pipe")
    inner = host.python(release, "import ckanext.alpha.plugin as p; print(p.__file__)")
    assert inner == str(tree / "ckanext/alpha/plugin.py")
    wheel = next((host.home / "shared/sources").rglob("tree-*.wheels/py3*/*.whl"))
    assert "ckanext/alpha/public/bundle.js" in subprocess.check_output(["unzip", "-l", wheel], text=True)
    assert host.show(release)["extensions"]["ckanext-alpha"]["build"][0] == BUNDLE
    # Once for each commit and list of commands.
    stamp = (tree / "ran").stat().st_mtime_ns
    assert host.plan()["changes"] == []
    assert (source(host, deployed(host)) / "ran").stat().st_mtime_ns == stamp
    host.pillar["extensions"]["ckanext-alpha"]["build"] = [BUNDLE]
    assert "other build commands" in host.plan()["changes"][0]
    third = source(host, deployed(host))
    assert (third / "ckanext/alpha/public/bundle.js").exists() and not (third / "ran").exists()


@pytest.mark.parametrize(
    ("commands", "said"),
    [
        (["true", "echo to stdout; echo 'no such loader https://eve:secret@x.org' >&2; exit 3"],
         "@x.org' >&2; exit 3\" ended with 3: to stdout no such loader https://x.org. -- nothing was touched."),
        (["echo database-password; false"], "ended with 1: "),
        (["sleep 60"], "its build (sleep 60) took longer than 2 s (ckan:build:timeout), and was ended"),
        (["echo x > /etc/x"], "cannot create /etc/x: Permission denied"),
        (["ln -s ../../../../etc out"], "its build has made the link out, which leads out of the checkout"),
        (["ln -s /etc/passwd ckanext/alpha/out"], "its build has made the link ckanext/alpha/out"),
        (["rm -rf ckanext && ln -s /etc ckanext"], "its build has made the link ckanext, which"),
        (["truncate -s 1100M big"], "there are more than 1 GB; let the last command remove"),
        (["rm -rf ../src"], "what its build has made is not taken: No such file or directory: its copy"),
    ],
    ids=["fails", "secret", "over time", "outside", "link up", "link", "link for a folder", "large", "gone"],
)  # fmt: skip
def test_f21_a_build_command_that_goes_wrong_is_one_sentence_and_leaves_nothing(host, alpha, commands, said):
    host.pillar["build"] = {"timeout": 2} if commands == ["sleep 60"] else {}
    host.pillar["extensions"]["ckanext-alpha"]["build"] = commands
    text = refused(host)
    assert "failed at plan: ckanext-alpha: " in text and said in text
    assert "secret@" not in text and "database-password" not in text
    assert host.releases() == []
    assert list((host.home / "shared/sources").rglob("tree-*[0-9a-f]")) == []
    # Nothing of it stands in the way of the next.
    host.pillar["extensions"]["ckanext-alpha"]["build"] = ["echo fine > fine"]
    host.pillar["build"] = {}
    assert (source(host, deployed(host)) / "fine").read_text() == "fine\n"


def test_f21_a_build_command_leaves_git_as_it_is_and_reaches_no_network(host, alpha):
    host.pillar["extensions"]["ckanext-alpha"]["build"] = [
        "git config core.fsmonitor 'touch /tmp/monitored' && echo x > .git/hooks/post-checkout",
        "mkdir -p inner/.git && echo x > inner/.git/config && echo x > inner/kept",
        "test ! -e /etc/resolv.conf && test -z \"$(ls -A /sys/class/net 2>/dev/null | grep -v '^lo$')\"",
    ]
    tree = source(host, deployed(host))
    assert "fsmonitor" not in (tree / ".git/config").read_text() and not (tree / ".git/hooks/post-checkout").exists()
    assert os.listdir(tree / "inner") == ["kept"]
    assert "?? inner/" in repos.git(tree, "status", "--porcelain")
