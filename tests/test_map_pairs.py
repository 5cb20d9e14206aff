"""Which images are matched with which, and features that are read when they are needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from map_scenes import write_views

from frontend.errors import ConfigError, DataError
from frontend.io import pairs as pairs_module
from frontend.io.feature_folder import FeatureFolder
from frontend.io.pairs import Exhaustive, Sequential, choose_pairs, read_pairs

NAMES = ("a.jpg", "b.jpg", "b c.jpg", "c.jpg")


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 70])
def test_all_pairs_come_once(count: int) -> None:
    found = list(Exhaustive(count))
    assert len(found) == len(Exhaustive(count)) == len(set(found))
    assert set(found) == {(i, j) for i in range(count) for j in range(i + 1, count)}


def test_a_block_of_pairs_needs_few_images() -> None:
    found = list(Exhaustive(200))
    for start in range(0, len(found) - 500, 500):
        assert len({image for pair in found[start : start + 500] for image in pair}) <= 130


@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("following", [1, 2, 9, 50])
def test_each_image_has_its_next_ones(count: int, following: int) -> None:
    found = list(Sequential(count, following))
    assert len(found) == len(Sequential(count, following))
    assert found == [(i, j) for i in range(count) for j in range(i + 1, count) if j - i <= following]


def test_many_images_need_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{i}.jpg" for i in range(301)]
    assert len(choose_pairs(names[:300])) == 44_850
    with pytest.raises(ConfigError) as caught:
        choose_pairs(names)
    assert str(caught.value) == "301 images make 45,150 pairs; expected --pairs FILE, --sequential N or --exhaustive"
    assert len(choose_pairs(names, exhaustive=True)) == 45_150
    assert len(choose_pairs(names, sequential=1)) == 300
    with pytest.raises(ConfigError, match="more than one choice of pairs"):
        choose_pairs(names, exhaustive=True, sequential=1)
    monkeypatch.setattr(pairs_module, "MOST_EXHAUSTIVE", 301)
    assert len(choose_pairs(names)) == 45_150


def test_pairs_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text("# two names\n\na.jpg c.jpg\nc.jpg\ta.jpg\r\n  b.jpg  b c.jpg \nb c.jpg a.jpg\na.jpg c.jpg\n")
    assert read_pairs(path, NAMES) == [(0, 3), (1, 2), (2, 0)]


def test_a_pair_of_names_is_no_comment(tmp_path: Path) -> None:
    """A name may start with the sign of comments; and some editors put a mark before the first."""
    path = tmp_path / "pairs.txt"
    path.write_text("#1.jpg a.jpg\n# 1.jpg a.jpg\n#1.jpg\n #1.jpg d.jpg\na.jpg # b.jpg\n", encoding="utf-8-sig")
    assert read_pairs(path, ("a.jpg", "#1.jpg", "# b.jpg")) == [(1, 0), (0, 2)]
    path.write_text("#1.jpg #1.jpg\n")
    with pytest.raises(DataError, match=r"line 1: '#1\.jpg #1\.jpg' pairs an image with itself"):
        read_pairs(path, ("a.jpg", "#1.jpg"))
    # letters that end lines elsewhere
    path.write_text("a\x85.jpg b\u2028.jpg\r\n", encoding="utf-8")
    assert read_pairs(path, ("a\x85.jpg", "b\u2028.jpg")) == [(0, 1)]


def test_a_line_that_is_two_pairs_is_refused(tmp_path: Path) -> None:
    """Which of them was meant nobody can tell."""
    path, names = tmp_path / "pairs.txt", ("a", "b c", "a b", "c")
    path.write_text("a  b c\n")  # the second name has one blank in it, the third as well
    assert read_pairs(path, ("a", "b c", "c")) == [(0, 1)]
    path.write_text("a\t c\na b c\n")
    with pytest.raises(DataError) as caught:
        read_pairs(path, names)
    assert str(caught.value) == f"{path}, line 2: 'a b c' is 'a' and 'b c' as well as 'a b' and 'c'; rename one of them"


def test_letters_are_one_however_they_are_composed(tmp_path: Path) -> None:
    """Some systems hand out names with accents as signs of their own, and editors write them as one."""
    path = tmp_path / "pairs.txt"
    whole, parts = "\u00e4.jpg", "a\u0308.jpg"
    for listed in (whole, parts):
        path.write_text(f"{listed} b.jpg\n", encoding="utf-8")
        for named in (whole, parts):
            assert read_pairs(path, (named, "b.jpg")) == [(0, 1)]
        # where both are there, each is itself
        assert read_pairs(path, (whole, parts, "b.jpg")) == [((whole, parts).index(listed), 2)]
    path.write_text(f"{whole} {parts}\n", encoding="utf-8")
    assert read_pairs(path, (whole, parts)) == [(0, 1)]
    with pytest.raises(DataError, match="pairs an image with itself"):
        read_pairs(path, (whole, "b.jpg"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a.jpg d.jpg", "no features of 'd.jpg'; expected names such as 'a.jpg'"),
        ("d.jpg a.jpg", "no features of 'd.jpg'; expected names such as 'a.jpg'"),
        ("a.jpg", "'a.jpg' given; expected two names of images"),
        ("a.jpg b.jpg c.jpg", "'a.jpg b.jpg c.jpg' given; expected two names of images"),
        ("b.jpg b.jpg", "'b.jpg b.jpg' pairs an image with itself"),
    ],
)
def test_lines_that_are_no_pair_are_named(tmp_path: Path, line: str, expected: str) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text(f"a.jpg b.jpg\n{line}\n")
    with pytest.raises(DataError) as caught:
        read_pairs(path, NAMES)
    assert str(caught.value) == f"{path}, line 2: {expected}"


def test_files_without_pairs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text("# none\n")
    with pytest.raises(DataError, match=r"pairs\.txt is empty; expected two names of images on each line"):
        read_pairs(path, NAMES)
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match=r"pairs\.txt cannot be read"):
        read_pairs(path, NAMES)


def test_features_that_were_read_last_are_at_hand(tmp_path: Path) -> None:
    names = tuple(f"sub/{i}.jpg" for i in range(5))
    views = write_views(tmp_path, names)
    (tmp_path / ".1-2.npz").write_text("hidden")
    one = views[0].features
    size = one.keypoints.nbytes + one.scores.nbytes + one.descriptors.nbytes
    folder = FeatureFolder(tmp_path, memory=3 * size)
    assert folder.names == names
    first = folder.read(0)
    assert (first.keypoints == one.keypoints).all()
    folder.read(1)
    assert folder.read(0) is first
    folder.read(2)
    folder.read(3)  # in place of 1, which was used least recently
    assert folder.read(0) is first
    second = folder.read(1)
    assert folder.read(1) is second
    for index in (2, 3, 4):
        folder.read(index)
    assert folder.read(0) is not first
    # two stay however large they are
    folder = FeatureFolder(tmp_path, memory=0)
    pair = folder.read(0), folder.read(1)
    assert (folder.read(0), folder.read(1)) == pair


def test_names_are_in_the_order_of_extraction(tmp_path: Path) -> None:
    names = ("a/2.jpg", "a/10.jpg", "a-b.jpg", "b.jpg")
    write_views(tmp_path, names)
    assert FeatureFolder(tmp_path).names == tuple(path.as_posix() for path in sorted(Path(name) for name in names))
