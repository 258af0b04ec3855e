use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::path::{Path, PathBuf};

use super::*;
use crate::archive::{DIRECTORY, FIFO, HARD_LINK, REGULAR, SYMLINK};
use crate::unpack::Unpack;

/// A folder of this test alone, which goes with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ramet-files-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("to")).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn pack(&self, name: &str) -> Vec<u8> {
        let out = File::create(self.path("archive")).unwrap();
        Pack::open(&self.text(name), false).unwrap().write_to(out.as_raw_fd()).unwrap();
        fs::read(self.path("archive")).unwrap()
    }

    fn unpack(&self, archive: &[u8]) -> Result<(), Refused> {
        fs::write(self.path("archive"), archive).unwrap();
        let archive = File::open(self.path("archive")).unwrap();
        let owner = fs::metadata(&self.0).map(|own| (own.uid(), own.gid())).unwrap();
        Unpack::open(&self.text("to"), Some(owner))?.read_from(archive.as_raw_fd())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn member(name: &str, kind: u8, link: &str, content: &[u8]) -> Vec<u8> {
    let (name, link) = (name.as_bytes().to_vec(), link.as_bytes().to_vec());
    let size = content.len() as u64;
    let mut out = Vec::new();
    Entry { name, link, kind, mode: 0o644, size, ..Entry::default() }.append_to(&mut out);
    out.extend_from_slice(content);
    out.resize(out.len() + archive::padding(size), 0);
    out
}

fn file(name: &str) -> Vec<u8> {
    member(name, REGULAR, "", b"evil")
}

fn whole(members: &[Vec<u8>]) -> Vec<u8> {
    let mut out = members.concat();
    out.resize(out.len() + 2 * archive::BLOCK_BYTES, 0);
    out
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn nothing_is_written_outside_the_destination() {
    let link = |name: &str, target: &str| member(name, SYMLINK, target, b"");
    let hard = |name: &str, target: &str| member(name, HARD_LINK, target, b"");
    let folder = |name: &str| member(name, DIRECTORY, "", b"");
    for (index, members) in [
        vec![file("../up")],
        vec![file("a/../../up")],
        vec![link("l", ".."), file("l/up")],
        vec![link("l", "/"), file("l/tmp/up")],
        vec![folder("d"), link("d/l", "../.."), file("d/l/up")],
        vec![link("l", ".."), folder("l/up")],
        vec![link("l", ".."), link("l/up", "x")],
        vec![link("l", ".."), member("l/up", FIFO, "", b"")],
        vec![link("l", "."), link("m", "l/.."), file("m/up")],
        vec![hard("h", "../victim")],
        vec![link("l", ".."), hard("h", "l/victim")],
        vec![link("self", "self"), file("self/up")],
        vec![hard("h", "none")],
        vec![member("k", b'9', "", b"")],
    ]
    .into_iter()
    .enumerate()
    {
        let scratch = Scratch::new(&format!("hostile-{index}"));
        fs::write(scratch.path("victim"), "good").unwrap();
        let outcome = scratch.unpack(&whole(&members));
        assert_eq!(outcome.unwrap_err().code, "bad_archive", "case {index}");
        assert_eq!(names(&scratch.0), ["archive", "to", "victim"], "case {index}");
        assert_eq!(fs::read_to_string(scratch.path("victim")).unwrap(), "good", "case {index}");
        assert!(!names(&scratch.path("to")).iter().any(|name| name.starts_with(".ramet")), "case {index}");
    }
}

#[test]
fn a_file_takes_the_place_of_a_link_and_not_of_what_it_leads_to() {
    let scratch = Scratch::new("replace");
    fs::write(scratch.path("victim"), "good").unwrap();
    symlink("../victim", scratch.path("to/l")).unwrap();
    scratch.unpack(&whole(&[file("/l"), member("new/deep/er", REGULAR, "", b"x")])).unwrap();
    assert_eq!(fs::read_to_string(scratch.path("victim")).unwrap(), "good");
    assert_eq!(fs::read_to_string(scratch.path("to/l")).unwrap(), "evil");
    assert_eq!(fs::read_to_string(scratch.path("to/new/deep/er")).unwrap(), "x");
}

#[test]
fn what_stands_in_the_way_is_refused_by_its_kind() {
    let scratch = Scratch::new("in-the-way");
    fs::create_dir_all(scratch.path("to/d/full")).unwrap();
    fs::write(scratch.path("to/f"), "old").unwrap();
    let code = |members: &[Vec<u8>]| scratch.unpack(&whole(members)).unwrap_err().code;
    assert_eq!(code(&[file("d")]), "is_a_directory");
    assert_eq!(code(&[member("f", DIRECTORY, "", b"")]), "not_a_directory");
    assert_eq!(code(&[file("f/x")]), "not_a_directory");
    assert_eq!(Unpack::open(&scratch.text("none"), None).err().unwrap().code, "path_not_found");
    assert_eq!(Unpack::open(&scratch.text("to/f"), None).err().unwrap().code, "not_a_directory");
    assert_eq!(fs::read_to_string(scratch.path("to/f")).unwrap(), "old");
}

#[test]
fn an_archive_that_is_cut_anywhere_leaves_whole_files_only() {
    let content = vec![7; 10_000];
    let archive = whole(&[member("a", REGULAR, "", &content), member("b", REGULAR, "", &content)]);
    for end in (0..archive.len() - archive::BLOCK_BYTES - 1).step_by(487) {
        let scratch = Scratch::new("cut");
        assert_eq!(scratch.unpack(&archive[..end]).unwrap_err().code, "bad_archive", "{end}");
        for name in names(&scratch.path("to")) {
            assert!(name == "a" || name == "b", "{name}");
            assert_eq!(fs::read(scratch.path("to").join(name)).unwrap(), content);
        }
    }
}

#[test]
fn a_tree_comes_back_as_it_was() {
    let scratch = Scratch::new("tree");
    let tree = scratch.path("tree");
    let long = "long".repeat(50);
    fs::create_dir_all(tree.join("deep/er").join(&long)).unwrap();
    fs::write(tree.join("deep/er").join(&long).join("f\u{e9}"), vec![1; 300_000]).unwrap();
    fs::write(tree.join("empty"), "").unwrap();
    fs::hard_link(tree.join("empty"), tree.join("twin")).unwrap();
    symlink("deep/../nowhere", tree.join("link")).unwrap();
    fs::set_permissions(tree.join("empty"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(tree.join("deep"), fs::Permissions::from_mode(0o1700)).unwrap();
    let holes = File::create(tree.join("holes")).unwrap();
    holes.set_len(40 << 20).unwrap();
    sys_write_at(&holes, b"middle", 20 << 20);
    let archive = scratch.pack("tree");
    scratch.unpack(&archive).unwrap();
    let to = scratch.path("to/tree");
    let mut pending = vec![PathBuf::new()];
    let mut seen = 0;
    while let Some(below) = pending.pop() {
        let (one, other) = (tree.join(&below), to.join(&below));
        let (a, b) = (fs::symlink_metadata(&one).unwrap(), fs::symlink_metadata(&other).unwrap());
        assert_eq!((a.mode(), a.mtime(), a.mtime_nsec()), (b.mode(), b.mtime(), b.mtime_nsec()), "{below:?}");
        seen += 1;
        if a.is_dir() {
            assert_eq!(names(&one), names(&other));
            pending.extend(names(&one).into_iter().map(|name| below.join(name)));
        } else if a.is_symlink() {
            assert_eq!(fs::read_link(&one).unwrap(), fs::read_link(&other).unwrap());
        } else {
            assert_eq!(a.nlink(), b.nlink());
            assert!(fs::read(&one).unwrap() == fs::read(&other).unwrap(), "{below:?}");
        }
    }
    assert_eq!(seen, 9);
    assert!(fs::metadata(to.join("holes")).unwrap().blocks() <= 64);
}

fn sys_write_at(file: &File, data: &[u8], at: u64) {
    std::os::unix::fs::FileExt::write_all_at(file, data, at).unwrap();
}

#[test]
fn the_first_name_is_the_last_part_of_the_path() {
    let scratch = Scratch::new("names");
    fs::write(scratch.path("to/f"), "").unwrap();
    symlink("to", scratch.path("link")).unwrap();
    for (path, follow_links, expected) in
        [("to", false, "to/"), ("to/", false, "to/"), ("to/.", false, "./"), ("link", true, "link/")]
    {
        let pack = Pack::open(&scratch.text(path), follow_links).unwrap();
        let out = File::create(scratch.path("archive")).unwrap();
        pack.write_to(out.as_raw_fd()).unwrap();
        let archive = fs::read(scratch.path("archive")).unwrap();
        // The entry of a time with a fraction has a header before it.
        let found = archive.chunks(archive::BLOCK_BYTES).any(|block| block.starts_with(expected.as_bytes()));
        assert!(found, "{path}");
    }
    assert_eq!(Pack::open(&scratch.text("none"), false).err().unwrap().code, "path_not_found");
}
