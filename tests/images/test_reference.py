"""Names of images mean what Docker's users expect."""

import pytest

from ramet.images.errors import InvalidReference
from ramet.images.reference import parse_digest, parse_reference

HEX = "a" * 64


@pytest.mark.parametrize(
    ("text", "full", "display"),
    [
        ("alpine", "docker.io/library/alpine:latest", "alpine:latest"),
        ("alpine:3.19", "docker.io/library/alpine:3.19", "alpine:3.19"),
        ("docker.io/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
        ("index.docker.io/library/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
        ("team/app", "docker.io/team/app:latest", "team/app:latest"),
        ("library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
        ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
        ("localhost:5000/app:1", "localhost:5000/app:1", "localhost:5000/app:1"),
        ("Registry/app", "Registry/app:latest", "Registry/app:latest"),
        ("r.example/a/b__c-d.e:T_1", "r.example/a/b__c-d.e:T_1", "r.example/a/b__c-d.e:T_1"),
        ("[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app:latest"),
        ("r.example:65535/a", "r.example:65535/a:latest", "r.example:65535/a:latest"),
        (f"alpine@sha256:{HEX}", f"docker.io/library/alpine@sha256:{HEX}", f"alpine@sha256:{HEX}"),
        (f"a:1@sha256:{HEX}", f"docker.io/library/a:1@sha256:{HEX}", f"a:1@sha256:{HEX}"),
    ],
)
def test_a_name_has_one_full_form(text: str, full: str, display: str) -> None:
    reference = parse_reference(text)
    assert str(reference) == full
    assert reference.display == display
    assert parse_reference(full) == reference
    assert parse_reference(display) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        " alpine",
        "Alpine",
        "a/",
        "/a",
        "a//b",
        "a..b",
        "a:",
        "a:-x",
        "a:" + "t" * 129,
        "a@sha256:abc",
        "a@md5:" + "0" * 32,
        f"a@sha256:{HEX.upper()}",
        "../etc",
        "r.example/../a",
        "a b",
        "a\n",
        "r.example:port/a",
        "r.example:65536/a",
        "[::1]:65536/a",
        "[::::::]/a:1",
        "[:]/a",
        "x" * 260,
        HEX,
        f"sha256:{HEX}",
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        parse_reference(text)
    assert caught.value.code == "invalid_reference"


def test_a_digest_has_a_known_algorithm_and_all_its_digits() -> None:
    assert parse_digest(f"sha256:{HEX}") == f"sha256:{HEX}"
    assert parse_digest("sha512:" + HEX * 2) == "sha512:" + HEX * 2
    for text in ("sha256:", f"sha512:{HEX}", f"sha1:{HEX[:40]}", f"sha256:{HEX}\n", "sha256:../../x"):
        with pytest.raises(InvalidReference):
            parse_digest(text)
