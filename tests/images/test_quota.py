"""Images and layers take no more than they may, and what is refused leaves nothing half made."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from ramet.images import ImageLimits, parse_reference
from ramet.images.catalog import Catalog
from ramet.images.errors import ImageQuotaReached
from ramet.images.pulls import PullStatus
from tests.images.build import file, tar, write_layout
from tests.images.lying_registry import LyingRegistry, incompressible, lying_registry
from tests.images.pulling import LAYER_BYTES, QUICK, big_blob, catalog_in, fill
from tests.net.namespaces import own_namespace

pytestmark = [pytest.mark.anyio, pytest.mark.netns]

MIB = 1 << 20


@pytest.fixture
def registry() -> Iterator[LyingRegistry]:
    with own_namespace(), lying_registry() as found:
        fill(found)
        yield found


def limits(bytes_max: int) -> ImageLimits:
    return ImageLimits(storage_bytes_max=bytes_max)


def taken_bytes(folder: Path) -> int:
    """What lies there of images and of layers, whole or half."""
    return sum(
        path.stat().st_size for path in (*folder.glob("content/*/rootfs.erofs"), *folder.glob("blobs/*"))
    )


def layout(place: Path, name: str, size_bytes: int) -> Path:
    layer = tar([file(name, incompressible(size_bytes))])
    return write_layout(place / name, [layer], f"{name}:1", config={"Cmd": [f"/{name}"]})[0]


async def test_a_pull_that_cannot_fit_is_refused_before_it_downloads(
    tmp_path: Path, registry: LyingRegistry
) -> None:
    folder, name = tmp_path / "images", f"{registry.authority}/app"
    async with catalog_in(folder, limits=limits(LAYER_BYTES)) as catalog:
        with pytest.raises(ImageQuotaReached, match="more are needed") as refused:
            await catalog.pulls.fetch(parse_reference(name))
        assert "limits.max_image_storage" in refused.value.remedy
        assert refused.value.fields["storage_bytes_max"] == LAYER_BYTES
        assert registry.asked(big_blob(registry)) == []
        failed = catalog.pulls.find(name)
        assert failed is not None
        assert failed.status is PullStatus.FAILED
        assert catalog.list() == []
    for place in ("tmp", "pulls", "content", "blobs"):
        assert list((folder / place).iterdir()) == []


async def test_the_layers_of_an_image_need_no_room_beside_it(tmp_path: Path, registry: LyingRegistry) -> None:
    # Its layer and its root disk fit each, and not together.
    folder, most = tmp_path / "images", LAYER_BYTES + MIB
    async with catalog_in(folder, limits=limits(most)) as catalog:
        image = await catalog.pulls.fetch(parse_reference(f"{registry.authority}/app"))
        assert 2 * image.size_bytes > most
    assert image.size_bytes <= taken_bytes(folder) <= most


async def test_layers_that_nobody_uses_make_way(tmp_path: Path, registry: LyingRegistry) -> None:
    folder = tmp_path / "images"
    async with catalog_in(folder, limits=limits(3 * LAYER_BYTES)) as catalog:
        await catalog.pulls.fetch(parse_reference(f"{registry.authority}/app"))
        assert any(path.stat().st_size >= LAYER_BYTES for path in (folder / "blobs").iterdir())
        await catalog.import_path(layout(tmp_path, "other", LAYER_BYTES + MIB // 2))
        assert len(catalog.list()) == 2
    assert list((folder / "blobs").glob(f"*{big_blob(registry).partition(':')[2]}")) == []
    assert taken_bytes(folder) <= 3 * LAYER_BYTES


async def test_an_import_that_turns_out_too_large_leaves_nothing(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "images", limits(MIB))
    await catalog.open()
    small = await catalog.import_path(layout(tmp_path, "small", 1000))
    with pytest.raises(ImageQuotaReached):
        await catalog.import_path(layout(tmp_path, "large", 2 * MIB))
    assert catalog.list() == [small]
    assert list((tmp_path / "images" / "tmp").iterdir()) == []
    assert len(list((tmp_path / "images" / "content").iterdir())) == 1

    # What is here gets further names all the same, where there is no room for another.
    full = Catalog(tmp_path / "images", limits(1))
    await full.open()
    assert (await full.import_path(tmp_path / "small", name="again")).digest == small.digest
    with pytest.raises(ImageQuotaReached):
        await full.import_path(layout(tmp_path, "tiny", 1))
    await full.remove(small.digest, in_use=lambda _: False)

    roomy = Catalog(tmp_path / "images", limits(MIB))
    await roomy.open()
    assert (await roomy.import_path(tmp_path / "tiny")).config.cmd == ("/tiny",)


async def test_pulls_at_once_do_not_promise_themselves_the_same_room(
    tmp_path: Path, registry: LyingRegistry
) -> None:
    other = registry.blobs.manifest([tar([file("other", incompressible(LAYER_BYTES)[::-1])])], config={})
    registry.put(other, tag="other")
    most = LAYER_BYTES + MIB  # For either of them.
    ends: list[str] = []

    async def fetch(catalog: Catalog, tag: str) -> None:
        try:
            await catalog.pulls.fetch(parse_reference(f"{registry.authority}/app:{tag}"))
            ends.append("ready")
        except ImageQuotaReached as error:
            ends.append(error.code)

    folder = tmp_path / "images"
    async with catalog_in(folder, replace(QUICK, pull_count_max=2), limits(most)) as catalog:
        async with anyio.create_task_group() as group:
            for tag in ("latest", "other"):
                group.start_soon(fetch, catalog, tag)
        assert sorted(ends) == ["image_quota_reached", "ready"]
        assert taken_bytes(folder) <= most
