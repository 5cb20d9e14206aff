"""What is found in folders of images."""

from __future__ import annotations

from pathlib import Path

import pytest

from frontend.errors import DataError
from frontend.folders import find_images, read_ahead


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_folders_behind_links_are_searched_too(tmp_path: Path) -> None:
    images, disk = tmp_path / "images", tmp_path / "disk"
    touch(images / "b.png", images / "z" / "c.png", images / "notes.txt", images / ".hidden.png")
    touch(disk / "2.jpg", disk / "sub" / "1.jpg")
    (images / "day").symlink_to(disk)
    (images / "a.png").symlink_to(disk / "2.jpg")
    (images / "gone.png").symlink_to(disk / "nothing.jpg")
    (images / "gone").symlink_to(tmp_path / "nowhere")
    assert find_images(images) == [Path(name) for name in ("a.png", "b.png", "day/2.jpg", "day/sub/1.jpg", "z/c.png")]


def test_links_that_lead_back_end(tmp_path: Path) -> None:
    images = tmp_path / "images"
    touch(images / "a.png", images / "sub" / "b.png")
    (images / "sub" / "up").symlink_to(images)
    (images / "above").symlink_to(tmp_path)
    assert find_images(images) == [Path("a.png"), Path("sub/b.png")]


def test_a_folder_found_twice_keeps_its_own_name(tmp_path: Path) -> None:
    images = tmp_path / "images"
    touch(images / "z" / "deep" / "b.png")
    (images / "a").symlink_to(images / "z")
    assert find_images(images) == [Path("z/deep/b.png")]


def test_a_link_may_be_the_folder_itself(tmp_path: Path) -> None:
    touch(tmp_path / "disk" / "a.png")
    (tmp_path / "images").symlink_to(tmp_path / "disk")
    assert find_images(tmp_path / "images") == [Path("a.png")]


def test_no_folder_and_no_image(tmp_path: Path) -> None:
    touch(tmp_path / "file", tmp_path / "empty" / "notes.txt")
    for name, reason in (("nowhere", "is missing"), ("file", "is a file"), ("empty", "has no image")):
        with pytest.raises(DataError, match=reason):
            find_images(tmp_path / name)


def test_an_item_is_named_by_who_reads_it() -> None:
    def read(item: tuple[str, list[int]]) -> None:
        raise MemoryError

    ((_, found),) = read_ahead(read, [("a.png", [1, 2, 3])], name=lambda item: item[0])
    assert str(found) == "a.png: out of memory"
