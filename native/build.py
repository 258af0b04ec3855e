#!/usr/bin/env python3
"""Builds the workspace's programs, static, and its libraries, and puts them where the Python package looks.

Standard library only: the wheel's build hook runs this before anything is installed, and `./run` runs
it whenever a source changed; with `--check` it only tells whether there is a cargo that will do. Which
there are, the workspace itself tells (`cargo metadata`).
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

NATIVE: Final = Path(__file__).resolve().parent
PROGRAMS: Final = NATIVE.parent / "src" / "ramet" / "_native"
TARGET: Final = "x86_64-unknown-linux-gnu"
# Static: the guest program runs in images that have another libc, or none.
RUSTFLAGS: Final = "-C target-feature=+crt-static"


class BuildFailed(Exception):
    """The programs cannot be built here; the text says what to do."""


def needed_version() -> tuple[int, ...]:
    """Return the oldest Rust the workspace accepts, as its Cargo.toml says."""
    manifest = tomllib.loads((NATIVE / "Cargo.toml").read_text(encoding="utf-8"))
    return _version(manifest["workspace"]["package"]["rust-version"])


def find_cargo() -> str:
    """Return the path of a cargo that is new enough.

    Raises:
        BuildFailed: there is none, or it is older than `needed_version()`.
    """
    needed = needed_version()
    needed_text = ".".join(map(str, needed))
    remedy = (
        f"ramet's two small programs need Rust {needed_text} or newer. Install it with\n"
        "  rustup (see rustup.rs), then `rustup default stable`, or\n"
        "  Debian 12:           apt-get install cargo-web gcc libc6-dev\n"
        "  Debian 13 and newer: apt-get install cargo gcc libc6-dev"
    )
    cargo = shutil.which("cargo") or shutil.which("cargo", path=str(Path.home() / ".cargo" / "bin"))
    if cargo is None:
        raise BuildFailed(f"no cargo in PATH or ~/.cargo/bin.\n{remedy}")
    told = subprocess.run([cargo, "--version"], capture_output=True, text=True, check=False)
    if told.returncode != 0:
        raise BuildFailed(f"{cargo} does not run: {told.stderr.strip()}\n{remedy}")
    found = re.search(r"cargo (\d+\.\d+)", told.stdout)
    if found is None or _version(found[1]) < needed[:2]:
        raise BuildFailed(f"{cargo} is {told.stdout.strip() or 'of no known version'}, too old.\n{remedy}")
    return cargo


def build() -> list[Path]:
    """Build every program and library of the workspace and return their paths in the Python package.

    Raises:
        BuildFailed: no cargo, or the compiler refused; its own words are on stderr.
    """
    cargo = find_cargo()
    programs, libraries = _target_names(cargo)
    static = _build_release(cargo, NATIVE / "target", RUSTFLAGS)
    # Of their own, as a static target knows no libraries that are loaded.
    packages = [argument for package in libraries for argument in ("--package", package)]
    shared = _build_release(cargo, NATIVE / "target" / "shared", "", *packages)
    PROGRAMS.mkdir(exist_ok=True)
    made = [static / name for name in programs]
    made += [shared / f"lib{name.replace('-', '_')}.so" for name in libraries]
    return [_install(file) for file in made]


def _build_release(cargo: str, folder: Path, flags: str, *arguments: str) -> Path:
    environment = dict(os.environ, RUSTFLAGS=flags, CARGO_TARGET_DIR=str(folder))
    command = [cargo, "build", "--quiet", "--release", "--target", TARGET, *arguments]
    if subprocess.run(command, cwd=NATIVE, env=environment, check=False).returncode != 0:
        raise BuildFailed(
            f"`cargo build` failed in {NATIVE}; a linker and a static libc are needed too "
            "(Debian: apt-get install gcc libc6-dev)"
        )
    return folder / TARGET / "release"


def build_example(package: str, name: str) -> Path:
    """Build one example program of `package`, static as the others, and return its path.

    Raises:
        BuildFailed: no cargo, or the compiler refused; its own words are on stderr.
    """
    environment = dict(os.environ, RUSTFLAGS=RUSTFLAGS, CARGO_TARGET_DIR=str(NATIVE / "target"))
    command = [find_cargo(), "build", "--quiet", "--release", "--target", TARGET]
    done = subprocess.run(
        [*command, "--package", package, "--example", name], cwd=NATIVE, env=environment, check=False
    )
    if done.returncode != 0:
        raise BuildFailed(f"`cargo build --example {name}` failed in {NATIVE}")
    return NATIVE / "target" / TARGET / "release" / "examples" / name


def _target_names(cargo: str) -> tuple[list[str], list[str]]:
    """Return the names of the programs, and the packages of the libraries that others load."""
    told = subprocess.run(
        [cargo, "metadata", "--no-deps", "--format-version", "1"],
        cwd=NATIVE,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if told.returncode != 0:
        raise BuildFailed(f"`cargo metadata` failed in {NATIVE}")
    workspace = json.loads(told.stdout)
    programs = [
        target["name"]
        for package in workspace["packages"]
        if package["id"] in workspace["workspace_default_members"]  # Not the fuzz targets.
        for target in package["targets"]
        if "bin" in target["kind"]
    ]
    libraries = [
        package["name"]
        for package in workspace["packages"]
        if any("cdylib" in target["kind"] for target in package["targets"])
    ]
    return sorted(programs), sorted(libraries)


def _install(program: Path) -> Path:
    """Copy `program` into the package by rename, so that one that is running keeps its file."""
    goal = PROGRAMS / program.name
    if goal.exists() and goal.read_bytes() == program.read_bytes():
        return goal
    fresh = goal.with_name(f".{goal.name}.{os.getpid()}")
    shutil.copy(program, fresh)
    fresh.chmod(0o755)
    fresh.replace(goal)
    return goal


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


if __name__ == "__main__":
    try:
        if sys.argv[1:] == ["--check"]:
            find_cargo()
        else:
            build()
    except BuildFailed as error:
        sys.exit(f"native build: {error}")
