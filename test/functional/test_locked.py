"""The lock file of a release: what it names, how requirements of every form come into it, and how it is met."""

from __future__ import annotations

import base64
import hashlib
import http.server
import re
import subprocess
import threading
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError

from ckan_deploy.build import addresses, requirements
from ckan_deploy.build.requirements import environment
from ckan_deploy.errors import FormulaError, InvalidArgument
from ckan_deploy.releases.manifest import Resolution
from ckan_deploy.settings.resolve import resolve as settings_of
from ckan_deploy.sources import pylock
from ckan_deploy.sources.pylock import File, Locked
from fakes import least_pillar
from functional.steps import archive, deployed, extension
from parts.base import uv_path
from stub import repos, wheels

pytestmark = pytest.mark.slow

VERSION = "import sharedlib; print(sharedlib.VERSION)"


def library(folder: Path, name: str = "sharedlib", version: str = "1.0") -> Path:
    """A repository of a library that uv builds by itself."""
    repo = folder / name
    (repo / name).mkdir(parents=True)
    (repo / name / "__init__.py").write_text(f"VERSION = 'git {version}'\n")
    (repo / "pyproject.toml").write_text(
        f"[project]\nname = '{name}'\nversion = '{version}'\n\n[build-system]\nrequires = ['uv_build>=0.7,<1']\n"
        f"build-backend = 'uv_build'\n\n[tool.uv.build-backend]\nmodule-root = ''\n"
    )
    repos.git(repo, "init", "-q", "--initial-branch", "main")
    repos.git(repo, "add", "-A")
    repos.git(repo, "commit", "-qm", "one")
    repos.tag(repo, "v1")
    return repo


def alpha(host, origins: Path, *lines: str, **more) -> Path:
    """An extension whose requirements file has these lines; the pillar lists it."""
    repo = repos.make_repo(origins, "alpha", "Alpha", requirements=lines, backend="uv_build")
    host.pillar.setdefault("extensions", {})["ckanext-alpha"] = extension(repo, **more)
    return repo


def requires(repo: Path, line: str) -> None:
    """State a requirement in the metadata of an extension."""
    project = repo / "pyproject.toml"
    project.write_text(
        project.read_text().replace("\n\n[project.entry", f'\ndependencies = ["{line}"]\n\n[project.entry')
    )
    repos.git(repo, "commit", "-qam", "requires")


def locked(host) -> dict[str, Locked]:
    """The lock file of the current release, by package."""
    text = host.show(lock=True)["lock"]
    assert (host.home / "current/pylock.toml").read_text() == text
    return {item.name: item for item in pylock.loads(text)}


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("wheel", "requirements.txt"),
        ("git", "requirements.txt"),
        ("egg", "requirements.txt"),
        ("wheel", "metadata"),
        ("git", "metadata"),
    ],
)
def test_f05_a_library_by_address_is_installed_from_there_and_pinned(host, origins, kind, where):
    wheel = wheels.make_wheel(origins / "files", "sharedlib", "1.0")
    repo = library(origins)
    commit = repos.git(repo, "rev-parse", "HEAD")
    line = {
        "wheel": f"sharedlib @ file://{wheel}",
        "git": f"sharedlib @ git+file://{repo}@v1",
        "egg": f"git+file://{repo}@main#egg=sharedlib",
    }[kind]
    city = alpha(host, origins, *([line] if where == "requirements.txt" else []))
    if where == "metadata":
        requires(city, line)
    release = deployed(host)
    assert host.python(release, VERSION) == ("1.0" if kind == "wheel" else "git 1.0")
    item = locked(host)["sharedlib"]
    if kind == "wheel":
        assert item.archive == File(
            f"file://{wheel}", hashes={"sha256": hashlib.sha256(wheel.read_bytes()).hexdigest()}
        )
    else:
        assert (item.url, item.commit) == (f"file://{repo}", commit)
        # What is in the branch later is another release.
        resolution = Resolution.of(host.plan()["contents"])
        assert commit in [pin.commit for pin in resolution.pins()]
    about = next((host.home / "releases" / release).glob("lib/*/site-packages/sharedlib-1.0.dist-info/direct_url.json"))
    assert "shared/" not in about.read_text()
    assert host.plan()["changes"] == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            "sharedlib @ git+file:///no/such/repository@v1",
            "ckanext-alpha asks for .*no/such/repository.*requirements.txt",
        ),
        ("sharedlib @ git+https://127.0.0.1:1/gone.git@v1", "ckanext-alpha asks for .*gone.git.*ckan:extensions"),
        (
            "sharedlib @ https://me:a-password@127.0.0.1:1/sharedlib-1.0-py3-none-any.whl",
            "ckanext-alpha has .*password",
        ),
        ("sharedlib @ hg+https://127.0.0.1:1/x", "ckanext-alpha asks for .*hg"),
        ("--find-links /tmp", "ckanext-alpha has the line '--find-links /tmp' in requirements.txt.*ckan:installer"),
        ("-e ./inner", "ckanext-alpha has the line '-e ./inner' in requirements.txt.*ckan:extensions"),
        ("./sharedlib-1.0-py3-none-any.whl", "ckanext-alpha has the line .*in requirements.txt, a file"),
    ],
)
def test_f05_what_cannot_be_had_or_kept_to_is_refused_at_plan_by_name(host, origins, line, says):
    alpha(host, origins, line)
    with pytest.raises(CommandExecutionError, match=says) as failure:
        host.plan()
    assert "a-password" not in str(failure.value) and "\n" not in str(failure.value)
    assert host.releases() == []


def test_f05_a_file_that_others_may_change_or_not_all_may_read_is_refused(host, origins):
    wheel = wheels.make_wheel(origins / "files", "sharedlib", "1.0")
    alpha(host, origins, f"sharedlib @ file://{wheel}")
    for mode in (0o600, 0o666):
        wheel.chmod(mode)
        with pytest.raises(CommandExecutionError, match="not root's own, or not to be read by all"):
            host.plan()


def test_f05_two_addresses_of_one_library_are_refused_and_an_override_wins(host, origins):
    one, two = (wheels.make_wheel(origins / version, "sharedlib", version) for version in ("1.0", "2.0"))
    alpha(host, origins, f"sharedlib @ file://{one}")
    beta = repos.make_repo(origins, "beta", "Beta", requirements=[f"sharedlib @ file://{two}"], backend="uv_build")
    host.pillar["extensions"]["ckanext-beta"] = extension(beta)
    with pytest.raises(CommandExecutionError, match="ckanext-alpha asks for .*ckanext-beta asks for .*override"):
        host.plan()
    host.pillar["override"] = [f"sharedlib @ file://{two}"]
    assert host.python(deployed(host), VERSION) == "2.0"


def test_h07_a_build_that_fails_names_the_extension_and_its_last_lines(host, origins):
    alpha(host, origins)
    beta = repos.make_repo(origins, "beta", "Beta")
    (beta / "setup.py").write_text("raise SystemExit('setup of beta says no')\n")
    repos.git(beta, "add", "-A")
    repos.git(beta, "commit", "-qm", "no")
    host.pillar["extensions"]["ckanext-beta"] = extension(beta)
    with pytest.raises(
        CommandExecutionError, match="ckanext-beta: it cannot be built: .*setup of beta says no"
    ) as failure:
        host.plan()
    assert "ckanext-alpha" not in str(failure.value)


def test_h07_an_sdist_that_fails_to_build_names_the_package_and_who_asks(host, origins, shelf):
    folder = origins / "townlib-1.0"
    folder.mkdir()
    (folder / "setup.py").write_text("raise SystemExit('setup of townlib says no')\n")
    (folder / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: townlib\nVersion: 1.0\n")
    subprocess.run(["tar", "czf", shelf / "townlib-1.0.tar.gz", "-C", origins, folder.name], check=True)
    alpha(host, origins, "townlib")
    with pytest.raises(CommandExecutionError, match="townlib .*says no.*who asks: townlib: ckanext-alpha"):
        host.plan()


@pytest.mark.parametrize(
    "line",
    [
        "-e git+{repo}#egg=ckanext-beta",
        "git+{repo}@main#egg=ckanext_beta",
        "-e git+{repo}.git",
        "ckanext-beta @ git+{repo}",
    ],
)
def test_h16_a_line_for_an_extension_that_the_pillar_lists_is_skipped_and_noted(host, origins, line):
    beta = repos.make_repo(origins, "beta", "Beta", backend="uv_build")
    alpha(
        host,
        origins,
        line.format(repo=f"file://{beta}"),
        "sharedlib @ file://" + str(wheels.make_wheel(origins / "files", "sharedlib", "1.0")),
    )
    host.pillar["extensions"]["ckanext-beta"] = extension(beta)
    planned = host.plan()
    (note,) = planned["notes"]
    assert re.match(
        r"ckanext-alpha has '.*beta.*' \(requirements.txt\), which is skipped: ckanext-beta comes from", note
    )
    release = deployed(host)
    assert host.python(release, VERSION) == "1.0"
    assert (host.home / "releases" / release / "src/ckanext-beta").is_dir()
    assert list(locked(host)) == ["sharedlib"] and host.show()["notes"] == [note]


def test_h16_any_other_editable_line_is_a_library_from_git(host, origins):
    repo = library(origins)
    alpha(host, origins, f"-e git+file://{repo}@v1#egg=sharedlib", "-e .")
    assert host.python(deployed(host), VERSION) == "git 1.0"


def test_the_lock_names_files_with_hashes_and_is_the_same_at_the_next_plan(host, origins, shelf):
    wheel = wheels.make_wheel(shelf, "sharedlib", "1.0")
    alpha(host, origins, "sharedlib<2")
    first = Resolution.of(host.plan()["contents"])
    deployed(host)
    item = locked(host)["sharedlib"]
    assert item.version == "1.0" and item.wheels[0].hashes["sha256"] == hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert "1 packages" in host.show()["lock"]
    assert Resolution.of(host.show(lock=True)).key() == first.key()
    assert Resolution.of(host.plan()["contents"]).key() == first.key()
    wheels.make_wheel(shelf, "sharedlib", "1.5")
    assert Resolution.of(host.plan()["contents"]).key() != first.key()


def test_a_lock_that_cannot_be_met_is_one_sentence_and_nothing_is_left(host, origins, shelf):
    wheel = wheels.make_wheel(shelf, "sharedlib", "1.0")
    alpha(host, origins, "sharedlib")
    contents = host.plan()["contents"]
    functions, ids = host.loaders().modules, (f"2030010100000{n}Z" for n in range(9))

    def build(lock: str) -> str:
        with pytest.raises(CommandExecutionError) as failure:
            functions["ckan_release.build"](next(ids), {**contents, "lock": lock})
        return str(failure.value)

    wheels.make_wheel(shelf, "sharedlib", "1.0", {"sharedlib.py": "VERSION = 'another'\n"})
    assert "sharedlib==1.0 has another hash" in build(contents["lock"])
    wheel.unlink()
    assert "sharedlib" in build(contents["lock"])
    other = contents["lock"].replace("py3-none-any.whl", "cp39-cp39-win_amd64.whl")
    assert "another platform or Python" in build(other)
    gone = contents["lock"].replace(f"file://{shelf}", "http://127.0.0.1:1")
    assert re.search(r"cannot be had .*index answers", build(gone))


@pytest.mark.parametrize("change", [
    ('lock-version = "1.0"', "this is no TOML"),
    ("file://", "ftp://"),
    ('name = "sharedlib"', 'name = "../x"'),
    ("http://", "http://me:password@"),
])  # fmt: skip
def test_a_lock_file_of_somebody_else_is_refused(change):
    entry = Locked("sharedlib", "1.0", (File("http://h/x.whl", hashes={"sha256": "0" * 64}), File("file:///x.whl")))
    text = pylock.dumps([entry])
    assert pylock.loads(text)[0].name == "sharedlib"
    with pytest.raises(InvalidArgument, match="no lock file"):
        pylock.loads(text.replace(*change))


def test_hashes_that_a_requirements_file_states_hold(host, origins, shelf):
    wheel = wheels.make_wheel(shelf, "sharedlib", "1.0")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    repo = alpha(host, origins, f"sharedlib==1.0 --hash=sha256:{digest}")
    assert "sharedlib" in host.plan()["contents"]["lock"]
    (repo / "requirements.txt").write_text(f"sharedlib==1.0 --hash=sha256:{'0' * 64}\n")
    repos.git(repo, "commit", "-qam", "another hash")
    with pytest.raises(CommandExecutionError, match="ckanext-alpha asks for .*has no file with a hash"):
        host.plan()


def test_a_package_without_a_wheel_is_locked_as_its_sdist_and_built_by_each_host(host, origins, shelf):
    repo = library(origins, "townlib")
    subprocess.run([uv_path(), "build", "-q", "--sdist", "--offline", "-o", shelf, repo], check=True)
    (shelf / ".gitignore").unlink(missing_ok=True)
    sdist = next(shelf.glob("*.tar.gz"))
    alpha(host, origins, "townlib")
    release = deployed(host)
    assert host.python(release, "import townlib; print(townlib.VERSION)") == "git 1.0"
    item = locked(host)["townlib"]
    assert not item.wheels and item.sdist.hashes["sha256"] == hashlib.sha256(sdist.read_bytes()).hexdigest()
    assert host.plan()["changes"] == []


def test_packages_of_the_pillar_are_resolved_with_the_rest_and_conflicts_name_the_base(host, origins, shelf, own_base):
    for version in ("1.0", "2.0"):
        for library in ("sharedlib", "lakelib", "cityhall"):
            wheels.make_wheel(shelf, library, version)
    install = [uv_path(), "pip", "install", "-q", "--offline", "--find-links", shelf, "-p", own_base / "bin/python"]
    subprocess.run([*install, "sharedlib==2.0", "lakelib==2.0"], check=True)
    alpha(host, origins, "cityhall")
    host.pillar["packages"] = ["cityhall<2", "sharedlib<2"]
    with pytest.raises(
        CommandExecutionError, match="ckan:packages asks for sharedlib<2 .*CKAN's own is sharedlib 2.0.*ckan:override"
    ):
        host.plan()
    # Several are one list, with what is there already: a list that is set twice is set once.
    host.pillar.update(packages=["lakelib<2", "sharedlib<2"], override=["cityhall==1.0"])
    with pytest.raises(CommandExecutionError) as refused:
        host.plan()
    assert "set ckan:override: ['cityhall==1.0', 'lakelib<2', 'sharedlib<2']" in str(refused.value)
    assert str(refused.value).count("ckan:override") == 1
    host.pillar.update(packages=["cityhall<2"], override=["sharedlib<2"])
    release = deployed(host)
    assert host.python(release, VERSION) == "1.0"
    assert host.python(release, "import cityhall; print(cityhall.VERSION)") == "1.0"
    assert host.show()["overridden"]["sharedlib"] == {"by": "ckan:override", "base": "2.0", "got": "1.0"}


class _Index(http.server.BaseHTTPRequestHandler):
    """A package index with a password."""

    def do_GET(self):
        self.server.asked.append(self.path)
        login = base64.b64encode(self.server.login.encode()).decode()
        path = self.path.strip("/").split("/")
        if self.headers.get("Authorization") != f"Basic {login}":
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="x"')
            self.end_headers()
            return
        body = b""
        if path[0] == "files":
            body = (self.server.folder / path[1]).read_bytes()
        else:
            names = [file.name for file in self.server.folder.glob("*.whl") if file.name.startswith(f"{path[-1]}-")]
            body = "".join(f'<a href="/files/{name}">{name}</a>' for name in names).encode()
        self.send_response(200 if body else 404)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def indexes(tmp_path):
    """Two indexes with logins of their own: their folders and addresses."""
    servers = []
    for number in (1, 2):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Index)
        server.folder, server.asked, server.login = tmp_path / f"index{number}", [], f"robot:index-password-{number}"
        server.folder.mkdir()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
    yield servers
    for server in servers:
        server.shutdown()
        server.server_close()


def url(server) -> str:
    return f"http://{server.login}@127.0.0.1:{server.server_port}/simple"


def test_the_first_index_that_has_a_package_wins_and_no_password_is_seen(host, origins, indexes):
    private, public = indexes
    wheels.make_wheel(private.folder, "sharedlib", "1.0")
    wheels.make_wheel(public.folder, "sharedlib", "9.0")
    wheels.make_wheel(public.folder, "cityhall", "1.0")
    wheel = wheels.make_wheel(origins / "files", "ckanext-guarded", "1.0", requires=["sharedlib", "cityhall"])
    host.file_roots = [str(origins / "files")]
    host.pillar["extensions"] = {"ckanext-guarded": archive(wheel)}
    log, wrapper = host.root / "arguments", host.root / "uv"
    wrapper.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {log}\nexec {uv_path()} "$@"\n')
    wrapper.chmod(0o755)
    log.touch()
    log.chmod(0o666)
    host.pillar["installer"].update(uv=str(wrapper), index_urls=[url(private)], index_url=url(public))
    contents = host.plan()["contents"]
    host.loaders().modules["ckan_release.build"]("20300101000000Z", contents)
    place = host.home / "releases/20300101000000Z"
    assert host.python(place.name, VERSION) == "1.0"
    (file,) = next(item for item in pylock.loads(contents["lock"]) if item.name == "sharedlib").wheels
    # The page of the index states no hash, so that of the file at plan is taken.
    digest = hashlib.sha256((private.folder / file.name).read_bytes()).hexdigest()
    assert file == File(f"http://127.0.0.1:{private.server_port}/files/{file.name}", hashes={"sha256": digest})
    for text in (log.read_text(), (place / "release.json").read_text(), (place / "pylock.toml").read_text()):
        assert text and "index-password" not in text
    host.pillar["installer"]["kind"] = "pip"
    with pytest.raises(CommandExecutionError, match="pip has no order among several"):
        host.plan()


def test_pip_installs_from_a_lock_with_hashes(host, origins, shelf, own_base):
    subprocess.run([own_base / "bin/python", "-m", "ensurepip"], check=True, capture_output=True)
    host.pillar["installer"]["kind"] = "pip"
    wheel = wheels.make_wheel(shelf, "sharedlib", "1.0")
    other = wheels.make_wheel(origins / "files", "cityhall", "1.0")
    repo = repos.make_repo(origins, "alpha", "Alpha", requirements=["sharedlib", f"cityhall @ file://{other}"])
    host.pillar["extensions"] = {"ckanext-alpha": extension(repo)}
    release = deployed(host)
    assert host.python(release, VERSION) == "1.0"
    items = locked(host)
    assert items["sharedlib"].wheels[0].hashes["sha256"] == hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert items["cityhall"].archive.url == f"file://{other}"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("git@github.com:ckan/ckanext-scheming.git", "https://github.com/ckan/ckanext-scheming", True),
        ("ssh://git@github.com/ckan/ckanext-scheming", "https://GitHub.com/ckan/ckanext-scheming.git/", True),
        ("https://github.com/ckan/ckanext-dcat", "https://github.com/ckan/ckanext-scheming", False),
        ("/srv/git/one.git", "file:///srv/git/one", True),
    ],
)
def test_two_addresses_of_one_repository(one, other, same):
    assert (addresses.same_place(one) == addresses.same_place(other)) is same


def test_addresses_are_taken_apart():
    found = addresses.parse("git+ssh://git@host/x/y.git@v1#egg=y&subdirectory=inner")
    assert (found.git, found.url, found.ref, found.subdirectory) == (True, "ssh://git@host/x/y.git", "v1", "inner")
    assert addresses.parse("git+git@host:x/y.git@v1").url == "git@host:x/y.git"
    assert addresses.parse("git+https://host/y").ref == "HEAD"
    assert addresses.parse("https://host/y-1.0-py3-none-any.whl#sha256=ab").hash == "sha256=ab"
    with pytest.raises(FormulaError, match="subdirectory"):
        addresses.parse("git+https://host/y#subdirectory=../x")


def test_markers_are_decided_by_the_python_of_the_base():
    line = "sharedlib ; python_version < '3.8'"
    assert requirements.of_line("a", "f", line, environment("3.11.2")) is None
    assert requirements.of_line("a", "f", line, environment("3.7.1")).name == "sharedlib"


def test_indexes_and_packages_that_cannot_mean_well_are_refused():
    said = ""
    try:
        settings_of(
            least_pillar(
                packages=["no requirement", "x @ https://me:pw@h/x.whl"],
                override=["=="],
                installer={"index_urls": ["ftp://h/simple"], "kind": "pip"},
            )
        )
    except FormulaError as exc:
        said = str(exc)
    for words in ("ckan:packages has the item", "password or a token", "ckan:override has", "index_urls has an item",
                  "index_urls is for uv"):  # fmt: skip
        assert words in said
