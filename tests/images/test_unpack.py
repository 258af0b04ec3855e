"""Layers stack as the OCI image specification says."""

import base64
import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from ramet.images.errors import LayerCorrupt
from ramet.images.limits import ImageLimits
from ramet.images.unpack import Staging, Unpacked
from tests.images.build import Entry, Node, file, folder, hardlink, read_tree, symlink, tar

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices are for root")


def unpack(place: Path, *layers: bytes) -> Unpacked:
    place.mkdir(exist_ok=True)
    with Staging(place, ImageLimits()) as staging:
        for layer in layers:
            staging.add_layer(io.BytesIO(layer))
        return staging.finish()


def names(place: Path) -> set[str]:
    return set(read_tree(place)) - {"/"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "staging"


def test_every_attribute_of_a_file_survives(place: Path) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    unpack(
        place,
        tar(
            [
                folder("d", 0o2750, uid=3, gid=4, mtime=1000),
                file(
                    "d/f",
                    b"content",
                    mode=0o6755,
                    uid=70_000,
                    gid=80_000,
                    pax={
                        "mtime": "1234567890.123456789",
                        "SCHILY.xattr.user.colour": "blue",
                        "SCHILY.xattr.security.capability": capability.decode("utf-8", "surrogateescape"),
                        "LIBARCHIVE.xattr.user.odd%20name": base64.b64encode(b"\0\xff").decode().rstrip("="),
                        "SCHILY.xattr.trusted.overlay.opaque": "y",
                        "SCHILY.xattr.security.selinux": "label",
                    },
                ),
                symlink("d/s", "f"),
                Entry("d/null", type=tarfile.CHRTYPE, device=(1, 3), mode=0o666),
                Entry("d/disk", type=tarfile.BLKTYPE, device=(7, 300), mode=0o660, gid=6),
                Entry("d/pipe", type=tarfile.FIFOTYPE, mode=0o600, uid=9),
            ]
        ),
    )
    tree = read_tree(place)
    plain = tree["/d/f"]
    assert (plain.mode, plain.uid, plain.gid) == (stat.S_IFREG | 0o6755, 70_000, 80_000)
    assert plain.mtime_ns == 1234567890123456789
    assert plain.xattrs == {
        "user.colour": b"blue".hex(),
        "user.odd name": "00ff",
        "security.capability": capability.hex(),
    }
    assert (tree["/d"].mode, tree["/d"].uid, tree["/d"].gid) == (stat.S_IFDIR | 0o2750, 3, 4)
    assert tree["/d"].mtime_ns == 1000 * 10**9
    assert tree["/d/s"].target == "f"
    assert tree["/d/s"].mtime_ns == 1_600_000_000 * 10**9
    assert (tree["/d/null"].mode, tree["/d/null"].rdev) == (stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert (tree["/d/disk"].mode, tree["/d/disk"].rdev) == (stat.S_IFBLK | 0o660, os.makedev(7, 300))
    assert (tree["/d/pipe"].mode, tree["/d/pipe"].uid) == (stat.S_IFIFO | 0o600, 9)


@pytest.mark.parametrize("dialect", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_targets_survive_in_both_dialects(place: Path, dialect: int) -> None:
    name = "/".join(["d" * 60] * 4) + "/" + "n" * 200
    unpack(place, tar([file(name, b"x"), symlink("s", "t" * 300), hardlink("h", name)], dialect))
    assert (place / name).read_bytes() == b"x"
    assert (place / "s").readlink() == Path("t" * 300)
    assert (place / "h").samefile(place / name)


def test_bytes_that_are_no_text_survive_in_names(place: Path) -> None:
    unpack(place, tar([file("caf\udce9", b"x")], tarfile.GNU_FORMAT))
    assert os.listdir(bytes(place)) == [b"caf\xe9"]


def test_folders_nobody_describes_are_roots_and_have_a_fixed_time(place: Path) -> None:
    unpack(place, tar([file("a/b/f")]))
    for path in ("a", "a/b", "."):
        status = (place / path).stat()
        assert (status.st_uid, status.st_mtime_ns) == (0, 0)
    assert stat.S_IMODE((place / "a/b").stat().st_mode) == 0o755


def test_the_root_folder_takes_its_attributes_from_a_layer(place: Path) -> None:
    unpack(place, tar([folder("./", 0o711, uid=5, mtime=77)]))
    status = place.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_mtime) == (0o711, 5, 77)


def test_a_folders_time_is_not_disturbed_by_later_layers(place: Path) -> None:
    unpack(place, tar([folder("d", mtime=5)]), tar([file("d/f")]), tar([file("d/.wh.f")]))
    assert (place / "d").stat().st_mtime == 5


def test_absolute_names_are_relative_to_the_image(place: Path) -> None:
    unpack(place, tar([file("/etc/f", b"1"), hardlink("/etc/g", "/etc/f")]))
    assert (place / "etc/g").read_bytes() == b"1"


def test_a_whiteout_hides_what_lower_layers_made(place: Path) -> None:
    unpack(
        place,
        tar([file("a/f"), file("a/g"), file("a/d/x/y"), symlink("a/s", "g")]),
        tar([file("a/.wh.f"), file("a/.wh.d"), file("a/.wh.s"), file("a/.wh.absent"), file("no/.wh.x")]),
    )
    assert names(place) == {"/a", "/a/g"}


@pytest.mark.parametrize("first", [True, False])
def test_a_whiteout_spares_its_own_layer_wherever_it_stands(place: Path, first: bool) -> None:
    own = [file("d/new", b"2"), file("f", b"2")]
    hidden = [file(".wh.d"), file(".wh.f")]
    unpack(
        place,
        tar([file("d/old"), file("d/new", b"1"), file("f", b"1")]),
        tar(hidden + own if first else own + hidden),
    )
    assert names(place) == {"/d", "/d/new", "/f"}
    assert (place / "d/new").read_bytes() == (place / "f").read_bytes() == b"2"


@pytest.mark.parametrize("first", [True, False])
def test_an_opaque_folder_hides_all_that_lies_below_it(place: Path, first: bool) -> None:
    own = [folder("d", 0o700), file("d/new"), file("d/sub/kept")]
    opaque = [file("d/.wh..wh..opq")]
    unpack(
        place,
        tar([file("d/old"), file("d/sub/old"), file("d/sub/kept"), file("beside")]),
        tar(opaque + own if first else own + opaque),
    )
    assert names(place) == {"/beside", "/d", "/d/new", "/d/sub", "/d/sub/kept"}


def test_a_whiteout_below_a_link_hides_where_the_link_leads(place: Path) -> None:
    unpack(
        place,
        tar([file("usr/lib/old"), file("usr/lib/f"), symlink("lib", "/usr/lib")]),
        tar([file("lib/.wh.old")]),
    )
    assert names(place) == {"/lib", "/usr", "/usr/lib", "/usr/lib/f"}


def test_bookkeeping_of_old_storage_drivers_is_not_content(place: Path) -> None:
    unpack(place, tar([folder(".wh..wh.plnk"), file(".wh..wh.plnk/1.2"), file(".wh..wh.aufs"), file("f")]))
    assert names(place) == {"/f"}


def test_layers_write_through_links_inside_the_image(place: Path) -> None:
    unpack(
        place,
        tar([folder("usr/lib"), symlink("lib", "/usr/lib"), symlink("up", "../../../usr")]),
        tar([file("lib/f", b"1"), file("up/g", b"2"), file("up/new/h", b"3")]),
    )
    assert (place / "lib").is_symlink()
    assert (place / "usr/lib/f").read_bytes() == b"1"
    assert (place / "usr/g").read_bytes() == b"2"
    assert (place / "usr/new/h").read_bytes() == b"3"


def test_hard_links_reach_into_lower_layers(place: Path) -> None:
    unpack(place, tar([file("a", b"1"), symlink("s", "a")]), tar([hardlink("d/b", "a"), hardlink("t", "s")]))
    assert (place / "d/b").samefile(place / "a")
    assert (place / "t").is_symlink()


def test_replacing_one_name_of_a_file_leaves_its_others_alone(place: Path) -> None:
    unpack(place, tar([file("a", b"1"), hardlink("b", "a")]), tar([file("b", b"2")]))
    assert (place / "a").read_bytes() == b"1"
    assert (place / "b").read_bytes() == b"2"


def test_a_hard_link_to_itself_changes_nothing(place: Path) -> None:
    unpack(place, tar([file("a", b"1"), hardlink("a", "a")]))
    assert (place / "a").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("below", "above", "expected"),
    [
        (folder("x"), file("x"), stat.S_IFREG),
        (file("x"), folder("x"), stat.S_IFDIR),
        (symlink("x", "/etc"), folder("x"), stat.S_IFDIR),
        (symlink("x", "/etc"), file("x"), stat.S_IFREG),
        (folder("x"), symlink("x", "y"), stat.S_IFLNK),
        (file("x"), Entry("x", type=tarfile.FIFOTYPE), stat.S_IFIFO),
    ],
)
def test_an_entry_replaces_one_of_another_type(
    place: Path, below: Entry, above: Entry, expected: int
) -> None:
    unpack(place, tar([folder("etc"), below]), tar([above]))
    assert stat.S_IFMT((place / "x").lstat().st_mode) == expected
    unpack(place, tar([below, above]))
    assert stat.S_IFMT((place / "x").lstat().st_mode) == expected


def test_a_folder_given_again_takes_all_its_new_attributes(place: Path) -> None:
    unpack(
        place,
        tar([folder("d", 0o700, pax={"SCHILY.xattr.user.a": "1"}), file("d/f")]),
        tar([folder("d", 0o755, uid=7)]),
    )
    node: Node = read_tree(place)["/d"]
    assert (stat.S_IMODE(node.mode), node.uid, node.xattrs) == (0o755, 7, {})
    assert (place / "d/f").exists()


def test_sparse_files_keep_their_holes_and_length(place: Path, tmp_path: Path) -> None:
    source = tmp_path / "sparse"
    with source.open("wb") as out:
        out.seek(1 << 20)
        out.write(b"middle")
        out.truncate(8 << 20)
    for kind in ("gnu", "posix"):
        layer = tmp_path / f"{kind}.tar"
        assert (
            os.spawnlp(
                os.P_WAIT,
                "tar",
                "tar",
                "-C",
                tmp_path,
                "--sparse",
                f"--format={kind}",
                "-cf",
                layer,
                "sparse",
            )
            == 0
        )
        assert layer.stat().st_size < 1 << 20
        unpacked = unpack(place, layer.read_bytes())
        assert unpacked.size_bytes == 8 << 20
        assert (place / "sparse").read_bytes() == source.read_bytes()
        assert (place / "sparse").stat().st_blocks * 512 < 1 << 20
        (place / "sparse").unlink()


def test_what_was_unpacked_is_counted(place: Path) -> None:
    found = unpack(place, tar([file("a", b"12345"), folder("d")]), tar([file("a", b"1", mtime=2**31)]))
    assert found == Unpacked(entry_count=3, size_bytes=6, mtime_s_max=2**31)


def test_an_empty_layer_changes_nothing(place: Path) -> None:
    unpack(place, tar([file("a")]), tar([]))
    assert names(place) == {"/a"}


def test_a_file_cannot_be_a_folder_for_a_later_entry(place: Path) -> None:
    with pytest.raises(LayerCorrupt):
        unpack(place, tar([file("a"), file("a/b")]))
