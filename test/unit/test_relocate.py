"""What the relocation makes of paths in text, and which wrong calls are refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ckan_deploy.build import cloning, prefixes
from ckan_deploy.build.packages import freeze
from ckan_deploy.build.sandbox import Sandbox
from ckan_deploy.build.virtualenv import clone, compile_, interpreter, verify
from ckan_deploy.errors import FormulaError, InvalidArgument
from ckan_deploy.system.processes import Done, tail


@pytest.fixture
def source(tmp_path):
    """Make a virtualenv without any tool from outside."""
    path = tmp_path / "source"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(path)], check=True)
    script(path / "bin/tool", f"#!{path}/bin/python\nprint('tool')\n")
    return path


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def site(path: Path) -> Path:
    return next(path.glob("lib/python*/site-packages"))


def relocated(text: str, old=("/srv/default",), target="/srv/new", is_script=False) -> str:
    return prefixes.replaced(text.encode(), prefixes.pattern(old), target, is_script).decode()


@pytest.mark.parametrize(
    "text",
    [
        "/srv/default2/src",
        "/srv/default-old",
        "/srv/default.old/x",
        "/srv/default_2",
        "/srv/default%20x",
        "/srv/défault",
        "/mnt/srv/default/src",
        "$HOME/srv/default",
        "file:///mnt/srv/default",
    ],
)
def test_a_path_that_only_looks_like_the_prefix_stays(text):
    assert relocated(text) == text


@pytest.mark.parametrize(
    "before, after",
    [
        ("/srv/default/src/a", "/srv/new/src/a"),
        ("VIRTUAL_ENV='/srv/default'\n", "VIRTUAL_ENV='/srv/new'\n"),
        ("a:/srv/default/bin:b", "a:/srv/new/bin:b"),
        ('{"url": "file:///srv/default/src/a"}', '{"url": "file:///srv/new/src/a"}'),
        ("/srv/default\n/srv/default2\n", "/srv/new\n/srv/default2\n"),
    ],
)
def test_the_prefix_is_replaced_at_path_boundaries(before, after):
    assert relocated(before) == after


def test_file_urls_are_quoted_and_plain_paths_are_not():
    text = "file:///srv/my%20env/src /srv/my env/src"
    assert relocated(text, ["/srv/my env"], "/srv/a b") == "file:///srv/a%20b/src /srv/a b/src"


def test_of_nested_prefixes_the_longest_counts():
    text = "/srv/x/env/lib /srv/x/lib"
    assert relocated(text, ["/srv/x", "/srv/x/env"], "/new") == "/new/lib /new/lib"


def test_a_shebang_that_the_kernel_would_cut_goes_through_the_shell():
    long = "/srv/" + "x" * 130
    for target in ("/srv/a b", long):
        text = relocated("#!/srv/default/bin/python -E\nprint(1)\n", target=target, is_script=True)
        assert text == f"#!/bin/sh\n'''exec' '{target}/bin/python' -E \"$0\" \"$@\"\n' '''\nprint(1)\n"
        assert relocated(text, [target], "/srv/short", True) == "#!/srv/short/bin/python -E\nprint(1)\n"


def test_a_system_python_is_no_prefix(source):
    script(source / "bin/helper", "#!/usr/bin/python3.1\n")
    assert "/usr" not in prefixes.own(str(source))


def test_a_clone_runs_and_shares_files(source, tmp_path):
    (site(source) / "mod.py").write_text("x = 1\n")
    target = tmp_path / "target"
    result = clone(str(source), str(target))
    assert result["files"] == result["linked"] + result["copied"] + result["rewritten"]
    assert subprocess.check_output([target / "bin/tool"], text=True) == "tool\n"
    assert os.path.samefile(site(source) / "mod.py", site(target) / "mod.py")
    assert not os.path.samefile(source / "bin/tool", target / "bin/tool")
    assert (target / "bin/tool").stat().st_mode == (source / "bin/tool").stat().st_mode
    assert (source / "bin/tool").read_text().startswith(f"#!{source}/bin/python\n")


def test_a_clone_takes_no_bytecode_of_tests(source, tmp_path):
    for name in ("pkg", "pkg/tests", "pkg/tests/deep", "pkg/testing"):
        (site(source) / name / "__pycache__").mkdir(parents=True)
        (site(source) / name / "__pycache__/a.cpython-311.pyc").write_bytes(b"")
    clone(str(source), str(tmp_path / "target"))
    found = {path.parent.relative_to(site(tmp_path / "target")) for path in (tmp_path / "target").rglob("a.*.pyc")}
    assert found == {Path("pkg/__pycache__"), Path("pkg/testing/__pycache__")}


def test_link_copy_shares_nothing(source, tmp_path):
    (site(source) / "mod.py").write_text("x = 1\n")
    result = clone(str(source), str(tmp_path / "target"), link="copy")
    assert result["linked"] == 0
    copied = site(tmp_path / "target") / "mod.py"
    assert not os.path.samefile(site(source) / "mod.py", copied)
    assert copied.stat().st_mtime_ns == (site(source) / "mod.py").stat().st_mtime_ns


@pytest.mark.skipif(
    not os.access("/dev/shm", os.W_OK) or os.stat("/dev/shm").st_dev == os.stat("/tmp").st_dev,
    reason="needs a second file system",
)
def test_another_file_system_gets_copies(source):
    target = Path(f"/dev/shm/ckan-venv-test-{os.getpid()}")
    (site(source) / "mod.py").write_text("x = 1\n")
    try:
        result = clone(str(source), str(target))
        assert result["linked"] == 0 and result["copied"] > 0
        assert subprocess.check_output([target / "bin/tool"], text=True) == "tool\n"
    finally:
        subprocess.run(["rm", "-rf", str(target)], check=True)


def test_checkouts_are_copied_and_the_sources_own_things_left_out(source, tmp_path):
    (source / "src/ext/run").mkdir(parents=True)
    (source / "src/ext/test.ini").write_text("[x]")
    (source / "src/ext/run/a.py").write_text("a = 1\n")
    (source / "run").mkdir()
    for name in ("production.ini", "release.json", ".lock"):
        (source / name).write_text("{}")
    target = tmp_path / "target"
    clone(str(source), str(target))
    assert not os.path.samefile(source / "src/ext/run/a.py", target / "src/ext/run/a.py")
    assert (target / "src/ext/test.ini").exists()
    assert not {"run", "production.ini", "release.json", ".lock"} & set(os.listdir(target))


def test_symlinks_into_the_source_point_into_the_target(source, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (source / "abs").symlink_to(source / "bin")
    (source / "rel").symlink_to("bin")
    (source / "out").symlink_to("../elsewhere")
    target = tmp_path / "deeper" / "target"
    clone(str(source), str(target))
    assert os.readlink(target / "abs") == f"{target}/bin"
    assert os.readlink(target / "rel") == "bin"
    assert (target / "out").resolve() == tmp_path / "elsewhere"


def test_stale_bytecode_of_a_rewritten_module_is_dropped(source, tmp_path):
    finder = site(source) / "__editable___x_finder.py"
    (source / "src/x").mkdir(parents=True)
    finder.write_text(f"MAPPING: dict[str, str] = {{'x': '{source}/src/x'}}\n")
    (site(source) / "kept.py").write_text("x = 1\n")
    subprocess.run([source / "bin/python", "-m", "compileall", "-q", site(source)], check=True)
    target = tmp_path / "target"
    result = clone(str(source), str(target))
    names = {name.split(".")[0] for name in os.listdir(site(target) / "__pycache__")}
    assert names == {"kept"}
    assert result["files"] == sum(len(files) for _, _, files in os.walk(target) if files) - sum(
        1 for item in target.rglob("*") if item.is_symlink() and item.is_file()
    )


def test_directories_keep_their_modes(source, tmp_path):
    (source / "share").mkdir(mode=0o750)
    (source / "share").chmod(0o750)
    clone(str(source), str(tmp_path / "target"))
    assert (tmp_path / "target/share").stat().st_mode & 0o777 == 0o750


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_others_may_write_to_is_neither_shared_nor_kept_so(source, tmp_path):
    """Nor is a file that makes root of whoever runs it, or one that is another user's."""
    for name, mode in (("loose.py", 0o666), ("shell", 0o4755), ("fair.py", 0o644), ("theirs.py", 0o644)):
        (site(source) / name).write_text("x = 1\n")
        (site(source) / name).chmod(mode)
    os.chown(site(source) / "theirs.py", 65534, 65534)
    site(source).chmod(0o777)
    (tmp_path / "target").mkdir()
    cloning.copy(str(source), str(tmp_path / "target"))
    found = site(tmp_path / "target")
    assert (found.stat().st_mode & 0o7777, found.stat().st_uid) == (0o755, os.geteuid())
    for name, mode, shared in (
        ("loose.py", 0o644, 1), ("shell", 0o755, 1), ("fair.py", 0o644, 2), ("theirs.py", 0o644, 1)
    ):  # fmt: skip
        status = (found / name).stat()
        assert (status.st_mode & 0o7777, status.st_uid, status.st_nlink) == (mode, os.geteuid(), shared), name


def test_an_existing_target_is_refused_and_stays(source, tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target/mine").write_text("x")
    with pytest.raises(FormulaError, match="exists"):
        clone(str(source), str(tmp_path / "target"))
    assert (tmp_path / "target/mine").read_text() == "x"


def test_a_source_that_is_no_virtualenv_is_refused(tmp_path):
    (tmp_path / "source/bin").mkdir(parents=True)
    with pytest.raises(FormulaError, match="not a virtualenv"):
        clone(str(tmp_path / "source"), str(tmp_path / "target"))
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("target", ["relative", "/srv/it's", "/srv/$HOME", ""])
def test_paths_that_cannot_be_written_into_scripts_are_refused(source, target):
    with pytest.raises(InvalidArgument, match="absolute path"):
        clone(str(source), target)


def test_a_target_inside_the_source_is_refused(source):
    with pytest.raises(InvalidArgument, match="inside"):
        clone(str(source), f"{source}/releases/1")
    assert not (source / "releases").exists()


def test_an_unknown_link_mode_is_refused(source, tmp_path):
    with pytest.raises(InvalidArgument, match="hard"):
        clone(str(source), str(tmp_path / "target"), link="soft")
    assert not (tmp_path / "target").exists()


def test_a_problem_removes_the_target(source, tmp_path):
    (site(source) / "gone.pth").write_text("/nowhere/at/all\n")
    with pytest.raises(FormulaError, match="gone.pth names /nowhere/at/all"):
        clone(str(source), str(tmp_path / "target"))
    assert not (tmp_path / "target").exists()


def test_an_error_half_way_removes_the_target(source, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cloning.os, "symlink", full)
    with pytest.raises(FormulaError, match="No space left"):
        clone(str(source), str(tmp_path / "target"))
    assert not (tmp_path / "target").exists()


def test_verify_names_each_kind_of_problem(source):
    script(source / "bin/strange", "#!/usr/bin/python3\n")
    script(source / "bin/shell", "#!/bin/sh\n")
    (site(source) / "a.pth").write_text("/srv/other/src\n")
    (site(source) / "b.pth").write_text("/srv/other2\n")
    found = verify(str(source), forbidden=["/srv/other"])
    assert any("bin/strange starts /usr/bin/python3" in item for item in found)
    assert sum("names /srv/other" in item and "does not exist" not in item for item in found) == 1
    assert sum("does not exist" in item for item in found) == 2
    assert not any("bin/shell" in item for item in found)


def test_verify_sees_an_interpreter_that_belongs_elsewhere(source, tmp_path):
    (source / "pyvenv.cfg").unlink()
    assert "belongs to" in verify(str(source), sandbox=Sandbox(user="nobody"))[-1]


def test_interpreter_reads_both_kinds_of_pyvenv_cfg(tmp_path):
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.11.2\n")
    assert interpreter(str(tmp_path)) == {"version": "3.11.2", "home": "/usr/bin"}
    (tmp_path / "pyvenv.cfg").write_text("home = /opt/bin\nversion_info = 3.12.1.final.0\n")
    assert interpreter(str(tmp_path)) == {"version": "3.12.1", "home": "/opt/bin"}


def test_freeze_reads_metadata_with_normal_names(source, tmp_path):
    for folder, name in ((site(source), "My_Pkg"), (tmp_path / "checkout", "Old.Style")):
        folder.mkdir(exist_ok=True)
        kind = "dist-info/METADATA" if name == "My_Pkg" else "egg-info/PKG-INFO"
        info = folder / f"{name}-1.0.{kind}"
        info.parent.mkdir()
        info.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (site(source) / "old.egg-link").write_text(f"{tmp_path}/checkout\n.")
    assert freeze(str(source)) == {"my-pkg": "1.0", "old-style": "1.0"}


def test_what_a_program_says_is_told_without_passwords_progress_and_tracebacks():
    said = Done(1, "", "failed: https://me:secret@host/simple\n\n")
    assert tail(said) == "failed: https://host/simple"
    said = Done(1, "", 'Resolved 3\nerror: no pass-word\nTraceback (most recent call last):\n  File "x"\nKeyError: 1\n')
    assert tail(said, hide=["pass-word", ""]) == "error: no **** KeyError: 1"


def test_compile_replaces_linked_bytecode(source, tmp_path):
    (site(source) / "mod.py").write_text("x = 1\n")
    assert compile_(str(source))["compiled"] == 1
    cached = next((site(source) / "__pycache__").glob("mod.*.pyc"))
    before = cached.read_bytes()
    assert str(source).encode() not in before
    target = tmp_path / "target"
    clone(str(source), str(target))
    assert compile_(str(target))["compiled"] == 0
    (site(target) / "mod.py").unlink()
    (site(target) / "mod.py").write_text("x = 22\n")
    os.utime(site(target) / "mod.py", (1, 1))
    (site(target) / "broken.py").write_text("{{ template }} !\n")
    result = compile_(str(target))
    assert result["compiled"] == 1
    assert result["failed"] == [f"{site(target)}/broken.py"]
    assert cached.read_bytes() == before


def test_a_name_that_is_made_a_link_while_it_is_copied_leads_nowhere(source, tmp_path, monkeypatch):
    """The source may be somebody's: each name is another thing when it is opened than when it was listed."""
    secret = tmp_path / "secret"
    secret.write_text("of root's")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/secret.py").write_text("of root's")
    (site(source) / "swapped.py").write_text("x = 1\n")
    os.chown(site(source) / "swapped.py", 65534, 65534)
    (site(source) / "folder").mkdir()
    real = cloning._opened

    def swap(name, folder, kind=0):
        for place, victim in ((site(source) / "swapped.py", secret), (site(source) / "folder", tmp_path / "elsewhere")):
            if name == place.name and not place.is_symlink():
                place.rmdir() if place.is_dir() else place.unlink()
                place.symlink_to(victim)
        return real(name, folder, kind)

    monkeypatch.setattr(cloning, "_opened", swap)
    for _ in range(2):
        with pytest.raises(FormulaError, match="failed"):
            clone(str(source), str(tmp_path / "target"))
        assert not list(tmp_path.glob("target/**/*secret*"))
    assert not (tmp_path / "target").exists()
