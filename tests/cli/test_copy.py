"""`ramet cp` against a served stand-in: what lands where, and what is refused."""

import io
import os
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from ramet.core.spec import State
from tests.api.stand_in import Served
from tests.cli.conftest import Ramet
from tests.cli.pseudo_terminal import at_terminal


@pytest.fixture
def guest(served: Served) -> Path:
    """Return the root of a running guest called "web"."""
    served.fleet.put("web")
    return served.fleet.files.root


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder the commands run in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write_tree(root: Path) -> None:
    """Make a folder with one of each kind, and names that are not easy."""
    (root / "tree" / "sub" / "empty").mkdir(parents=True)
    (root / "tree" / "big").write_bytes(os.urandom(700_000))
    (root / "tree" / "none").touch()
    (root / "tree" / "sub" / ("n" * 200)).write_text("a long name")
    (root / "tree" / "sub" / "sn\N{SNOWMAN}w").write_text("unicode")
    Path(os.fsdecode(bytes(root / "tree") + b"/\xff\xfe")).write_text("no text")
    (root / "tree" / "link").symlink_to("sub/run.sh")
    (root / "tree" / "away").symlink_to("/etc/passwd")
    os.link(root / "tree" / "big", root / "tree" / "sub" / "zz-big-again")
    os.mkfifo(root / "tree" / "pipe")
    (root / "tree" / "sub").chmod(0o2750)
    (root / "tree" / "big").chmod(0o4711)
    for path in (root / "tree" / "big", root / "tree" / "sub"):
        os.utime(path, ns=(1_600_000_000_123_456_789, 1_600_000_000_123_456_789))


def manifest(root: Path) -> dict[str, tuple[object, ...]]:
    """Return what is below `root`: mode, time, content or target, and the names of the same file."""
    found: dict[str, tuple[object, ...]] = {}
    groups: dict[int, list[str]] = {}
    for path in sorted(root.rglob("*")):
        name, facts = str(path.relative_to(root)), path.lstat()
        groups.setdefault(facts.st_ino, []).append(name)
        content: object = None
        if stat.S_ISREG(facts.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(facts.st_mode):
            content = os.readlink(path)
        # The standard library's tar, behind the stand-in, reads times as floating point numbers.
        found[name] = (oct(facts.st_mode), round(facts.st_mtime, 3), content, groups[facts.st_ino])
    return found


def test_a_tree_comes_out_equal(ramet: Ramet, guest: Path, here: Path) -> None:
    write_tree(guest)
    assert ramet("cp", "-a", "web:/tree", ".") == (0, "", "")
    assert manifest(here) == manifest(guest)


def test_a_tree_goes_in_with_all_that_is_in_it(ramet: Ramet, guest: Path, here: Path) -> None:
    write_tree(here)
    assert ramet("cp", "-a", "tree", "web:/") == (0, "", "")
    # What unpacks it behind the stand-in keeps no set-user-id bits, and no times of links.
    arrived, sent = manifest(guest), manifest(here)
    assert {name: arrived[name][2:] for name in arrived} == {name: sent[name][2:] for name in sent}


def test_without_archive_nobody_is_given_set_user_id_bits(ramet: Ramet, guest: Path, here: Path) -> None:
    write_tree(guest)
    assert ramet("cp", "web:/tree", ".")[0] == 0
    assert oct((here / "tree/big").stat().st_mode) == oct(stat.S_IFREG | 0o711)
    assert oct((here / "tree/sub").stat().st_mode) == oct(stat.S_IFDIR | 0o750)


# What is there before (a name with a slash is a folder), the two paths, and what has the content then.
COPIES = [
    ((), "f", "DST", "DST"),
    (("DST",), "f", "DST", "DST"),
    (("DST/",), "f", "DST", "DST/f"),
    (("DST/",), "f", "DST/", "DST/f"),
    (("DST/",), "f", "DST/new", "DST/new"),
    ((), "d", "DST", "DST/f"),
    ((), "d", "DST/", "DST/f"),
    ((), "d/", "DST", "DST/f"),
    (("DST/",), "d", "DST", "DST/d/f"),
    (("DST/",), "d/", "DST", "DST/d/f"),
    (("DST/",), "d", "DST/.", "DST/d/f"),
    (("DST/",), "d/.", "DST", "DST/f"),
    ((), "d/.", "DST", "DST/f"),
]


@pytest.mark.parametrize(("before", "source", "destination", "expected"), COPIES)
@pytest.mark.parametrize("way", ["in", "out"])
def test_where_a_copy_lands_is_as_with_docker(
    ramet: Ramet, guest: Path, here: Path, way: str, before: tuple[str, ...], source: str,
    destination: str, expected: str,
) -> None:  # fmt: skip
    origin, target = (here, guest) if way == "in" else (guest, here)
    (origin / "d").mkdir()
    (origin / "d/f").write_text("content")
    (origin / "f").write_text("content")
    for name in before:
        (target / name).mkdir() if name.endswith("/") else (target / name).write_text("old")
    paths = (source, f"web:/{destination}") if way == "in" else (f"web:/{source}", destination)
    assert ramet("cp", *paths) == (0, "", "")
    assert (target / expected).read_text() == "content"
    assert len([path for path in target.rglob("*") if path.is_file()]) == 1


REFUSED_OUT = [
    ("web:/nothing", "x", "there is nothing at web:/nothing"),
    ("web:/f", "no/x", "there is no directory"),
    ("web:/f", "no/", "there is no directory no/"),
    ("web:/d", "file", "file is no directory"),
    ("web:/f", "file/", "is no directory"),
    ("web:/f", "/dev/null", "/dev/null is neither a file nor a directory"),
    ("web:/f", "dir", "is a directory, and cannot become a file"),
    ("web:/d", "lies", "exists and is no directory"),
    ("nobody:/f", "x", "nobody"),
    ("ended:/f", "x", "ended is Stopped"),
]


@pytest.mark.parametrize(("source", "destination", "message"), REFUSED_OUT)
def test_a_copy_here_that_cannot_be_is_refused(
    ramet: Ramet, served: Served, guest: Path, here: Path, source: str, destination: str, message: str
) -> None:
    served.fleet.put("ended", State.STOPPED)
    (guest / "d").mkdir()
    (guest / "f").write_text("content")
    (here / "dir/f").mkdir(parents=True)
    (here / "lies").mkdir()
    (here / "lies/d").symlink_to("/tmp")
    (here / "file").touch()
    before = sorted(here.rglob("*"))
    exit_code, _, err = ramet("cp", source, destination)
    assert exit_code == 1
    assert err.startswith("Error: ")
    assert message in err
    assert sorted(here.rglob("*")) == before


REFUSED_IN = [
    ("nothing", "web:/x", "No such file or directory"),
    ("f", "web:/no/x", "there is no directory web:/no"),
    ("f", "web:/no/", "there is no directory web:/no/"),
    ("d", "web:/file", "web:/file is no directory"),
    ("f", "web:/file/.", "web:/file/. "),
    ("f/", "web:/x", "f/"),
    ("/dev/null", "web:/x", "/dev/null is a device"),
    ("f", "nobody:/x", "nobody"),
    ("f", "ended:/x", "ended is Stopped"),
]


@pytest.mark.parametrize(("source", "destination", "message"), REFUSED_IN)
def test_a_copy_into_a_guest_that_cannot_be_is_refused(
    ramet: Ramet, served: Served, guest: Path, here: Path, source: str, destination: str, message: str
) -> None:
    served.fleet.put("ended", State.STOPPED)
    (here / "d").mkdir()
    (here / "f").write_text("content")
    (guest / "file").touch()
    exit_code, _, err = ramet("cp", source, destination)
    assert exit_code == 1
    assert err.startswith("Error: ")
    assert message in err
    assert [path.name for path in guest.rglob("*")] == ["file"]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (("a", "b"), "Neither path is of an instance"),
        (("web:/a", "other:/b"), "ramet cp A:PATH - | ramet cp - B:DIRECTORY"),
        (("web:", "b"), "is not INSTANCE:PATH"),
        (("./a:b", "/c:d"), "Neither path is of an instance"),
        (("a",), "Missing argument 'DESTINATION'"),
    ],
)
def test_paths_that_make_no_copy_are_not_understood(
    ramet: Ramet, paths: tuple[str, ...], message: str
) -> None:
    exit_code, _, err = ramet("cp", *paths)
    assert (exit_code, message in err) == (2, True)


def test_links_are_copied_as_links_unless_they_are_to_be_followed(
    ramet: Ramet, guest: Path, here: Path
) -> None:
    for root in (guest, here):
        (root / "f").write_text("content")
        (root / "link").symlink_to("f")
    assert ramet("cp", "link", "web:/a")[0] == ramet("cp", "-L", "link", "web:/b")[0] == 0
    assert ramet("cp", "web:/link", "a")[0] == ramet("cp", "-L", "web:/link", "b")[0] == 0
    for root in (guest, here):
        assert os.readlink(root / "a") == "f"
        assert not (root / "b").is_symlink()
        assert (root / "b").read_text() == "content"


def test_a_link_at_the_destination_stays_and_what_it_leads_to_is_replaced(
    ramet: Ramet, guest: Path, here: Path
) -> None:
    for root in (guest, here):
        (root / "real").mkdir()
        (root / "real/file").write_text("old")
        (root / "to").symlink_to("real/file")
        (root / "new").write_text("new")
    assert ramet("cp", "new", "web:/to") == ramet("cp", "web:/new", "to") == (0, "", "")
    for root in (guest, here):
        assert os.readlink(root / "to") == "real/file"
        assert (root / "real/file").read_text() == "new"


def test_holes_stay_holes_here(ramet: Ramet, guest: Path, here: Path) -> None:
    with (guest / "sparse").open("wb") as file:
        file.seek(8 << 20)
        file.write(b"end")
        file.truncate(16 << 20)
    assert ramet("cp", "web:/sparse", "copy")[0] == 0
    assert (here / "copy").read_bytes() == (guest / "sparse").read_bytes()
    assert (here / "copy").stat().st_blocks * 512 <= 64 << 10


def test_a_copy_that_is_cut_leaves_no_part_of_the_file(
    ramet: Ramet, served: Served, guest: Path, here: Path
) -> None:
    (guest / "big").write_bytes(os.urandom(4 << 20))
    (here / "big").write_text("old")
    served.fleet.files.broken_after_bytes = 1 << 20
    exit_code, _, err = ramet("cp", "web:/big", ".")
    assert (exit_code, err.startswith("Error: The connection to ")) == (1, True)
    assert [path.name for path in here.iterdir()] == ["big"]
    assert (here / "big").read_text() == "old"


def piped(served: Served, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "RAMET_HOST": served.unix_url}
    command = [sys.executable, "-m", "ramet.cli", *arguments]
    return subprocess.run(command, env=environment, input=stdin, capture_output=True, check=False)


def test_an_archive_comes_from_stdin_and_goes_to_stdout(served: Served, guest: Path, tmp_path: Path) -> None:
    write_tree(guest)
    done = piped(served, "cp", "web:/tree", "-")
    assert (done.returncode, done.stderr) == (0, b"")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        assert "tree/sub/empty" in archive.getnames()
    (guest / "other").mkdir()
    assert piped(served, "cp", "-a", "-", "web:/other", stdin=done.stdout).returncode == 0
    assert manifest(guest / "other/tree").keys() == manifest(guest / "tree").keys()
    refused = piped(served, "cp", "-", "web:/none", stdin=done.stdout)
    assert (refused.returncode, refused.stderr) == (
        1,
        b"Error: the guest has no directory /none [path_not_found]\n",
    )
    refused = piped(served, "cp", "-", "web:/other", stdin=b"no archive" * 100)
    assert (refused.returncode, b"not an archive" in refused.stderr) == (1, True)


@pytest.mark.parametrize("is_inward", [True, False])
def test_on_a_terminal_a_bar_says_how_far_a_copy_is(
    guest: Path, here: Path, served: Served, is_inward: bool
) -> None:
    for folder in (guest, here):
        (folder / "big").write_bytes(bytes(3_000_000))
    paths = ("big", "web:/copy") if is_inward else ("web:/big", "copy")
    environment = {**os.environ, "RAMET_HOST": served.unix_url}
    with at_terminal("cp", *paths, environment=environment, size=(24, 120)) as terminal:
        terminal.wait_seen(paths[0])
        terminal.wait_seen("3.0/3.0 MB")
        assert terminal.wait_end() == 0
    with at_terminal("cp", "-q", *paths, environment=environment) as terminal:
        assert (terminal.wait_end(), terminal.seen) == (0, b"")
    assert ((guest if is_inward else here) / "copy").stat().st_size == 3_000_000


def test_without_a_terminal_a_copy_says_nothing(guest: Path, here: Path, ramet: Ramet) -> None:
    (here / "file").write_text("x")
    assert ramet("cp", "file", "web:/") == (0, "", "")
