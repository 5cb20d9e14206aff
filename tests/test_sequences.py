"""Folders and videos as sources of frames: order, stamps, pairs, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from frontend.errors import DataError, ImageError
from frontend.masks import read_mask
from frontend.sequences import ImageFolder, Source, doubt_of_names, open_source, pair_up


def write(path: Path, level: int = 0, size: tuple[int, int] = (16, 12)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full(size[::-1], level, np.uint8))
    return path


def told(source: Source) -> list[tuple[int, int]]:
    """Stamps and levels of all frames."""
    found = []
    for frame in source.frames():
        image = source.read(frame)
        if image is None:
            break
        found.append((frame.stamp_ns, int(image.flat[0])))
    return found


def euroc(
    root: Path, camera: str = "cam0", stamps: tuple[int, ...] = (1403636579763555584, 1403636579813555456)
) -> Path:
    folder = root / "mav0" / camera
    for n, stamp in enumerate(stamps):
        write(folder / "data" / f"{stamp}.png", 10 * n)
    rows = "".join(f"{stamp},{stamp}.png\r\n" for stamp in stamps)
    (folder / "data.csv").write_bytes(f"#timestamp [ns],filename\r\n{rows}".encode())
    return folder


@pytest.mark.parametrize("below", ["", "mav0", "mav0/cam0", "mav0/cam0/data"])
def test_euroc_has_nanoseconds_in_a_list(tmp_path: Path, below: str) -> None:
    folder = euroc(tmp_path)
    source = open_source(tmp_path / below)
    assert told(source) == [(1403636579763555584, 0), (1403636579813555456, 10)]
    assert (source.name, source.stamps, source.stamped) == (str(folder / "data"), "data.csv", True)
    assert (source.count, source.interval_ns) == (2, 49999872)


@pytest.mark.parametrize("below", ["", "rgb"])
def test_tum_has_seconds_and_names_in_a_list(tmp_path: Path, below: str) -> None:
    for n, name in enumerate(("1305031102.175304", "1305031102.211214")):
        write(tmp_path / "rgb" / f"{name}.png", n)
    (tmp_path / "rgb.txt").write_text(
        "# color images\n# timestamp filename\n1305031102.175304 rgb/1305031102.175304.png\n"
        "1305031102.211214 rgb/1305031102.211214.png\n"
    )
    # a float would have rounded them
    assert told(open_source(tmp_path / below)) == [(1305031102175304000, 0), (1305031102211214000, 1)]


@pytest.mark.parametrize(("below", "base"), [("", 0), ("image_0", 0), ("image_1", 100)])
def test_kitti_has_seconds_in_a_line_for_each_image(tmp_path: Path, below: str, base: int) -> None:
    for n in range(3):
        write(tmp_path / "image_0" / f"{n:06d}.png", n)
        write(tmp_path / "image_1" / f"{n:06d}.png", 100 + n)
    (tmp_path / "times.txt").write_text("0.000000e+00\n1.037359e-01\n2.073459e-01\n")
    expected = [(0, base), (103735900, base + 1), (207345900, base + 2)]
    assert told(open_source(tmp_path / below)) == expected
    (tmp_path / "times.txt").write_text("0\n1\n")
    with pytest.raises(DataError, match="2 stamps for 3 images"):
        open_source(tmp_path / below)
    assert [level for _, level in told(open_source(tmp_path / below, fps=10))] == [base, base + 1, base + 2]


def test_images_of_kitti_that_are_missing_leave_the_others_their_stamps(tmp_path: Path) -> None:
    for n in (0, 2, 3):
        write(tmp_path / "image_0" / f"{n:06d}.png", n)
    (tmp_path / "times.txt").write_text("0\n0.1\n0.2\n0.3\n")
    assert told(open_source(tmp_path)) == [(0, 0), (200000000, 2), (300000000, 3)]
    write(tmp_path / "image_0" / "000004.png", 4)
    write(tmp_path / "image_0" / "000005.png", 5)
    with pytest.raises(DataError, match="4 stamps for 5 images"):
        open_source(tmp_path)


def test_images_that_are_named_from_one_are_paired_with_their_stamps_by_order(tmp_path: Path) -> None:
    for n in range(3):
        write(tmp_path / "set" / "image_0" / f"{n + 1:06d}.png", n)
        write(tmp_path / "flat" / f"{n + 1}.png", n)
    for folder in ("set", "flat"):
        (tmp_path / folder / "times.txt").write_text("5\n5.1\n5.2\n")
        assert told(open_source(tmp_path / folder)) == [(5_000_000_000, 0), (5_100_000_000, 1), (5_200_000_000, 2)]


RAW_NS = 1_317_042_145_964_389_445  # `date -u -d '2011-09-26 13:02:25' +%s`, and the digits behind the point


def raw(root: Path, camera: str = "image_00", seconds: str = "25.964389445 26.067778560 26.171166667") -> Path:
    """A camera of a drive, as KITTI's raw data have them."""
    folder = root / "2011_09_26_drive_0001_sync" / camera
    for n in range(3):
        write(folder / "data" / f"{n:010d}.png", n)
    (folder / "timestamps.txt").write_text("".join(f"2011-09-26 13:02:{second}\n" for second in seconds.split()))
    return folder


@pytest.mark.parametrize("below", ["", "image_00", "image_00/data"])
def test_kitti_raw_has_a_date_and_a_time_in_a_line_for_each_image(tmp_path: Path, below: str) -> None:
    drive = raw(tmp_path).parent
    write(raw(tmp_path, "image_02") / "data" / "0000000003.png")  # is not asked for
    (drive / "oxts").mkdir()
    source = open_source(drive / below)
    expected = [(RAW_NS, 0), (RAW_NS + 103_389_115, 1), (RAW_NS + 206_777_222, 2)]
    assert told(source) == expected
    assert (source.name, source.stamps) == (str(drive / "image_00" / "data"), "timestamps.txt")
    assert source.stamped
    assert source.files[0] == drive / "image_00" / "timestamps.txt"
    (drive / "image_00" / "data" / "0000000001.png").unlink()
    assert told(open_source(drive / below)) == [expected[0], expected[2]]


def test_a_drive_without_gray_cameras_has_its_left_colour_one(tmp_path: Path) -> None:
    folder = raw(tmp_path, "image_02")
    raw(tmp_path, "image_03")
    assert open_source(folder.parent).name == str(folder / "data")


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("2011-09-26 13:02:25.9\n2011-09-26 13:02:26.1\n", "has 2 stamps for 3 images in .*data; expected as many"),
        ("", "has 0 stamps for 3 images"),
        ("1317042145.9\n" * 3, "the stamp '1317042145.9'; expected a date and a time, such as 2011-09-26 13:02:25.96"),
        ("2011-02-29 13:02:25.9\n" * 3, "the stamp '2011-02-29 13:02:25.9'; expected a date"),
        ("2011-09-26 13:02:25.1234567891\n" * 3, "the stamp '2011-09-26 13:02:25.1234567891'; expected a date"),
        ("2300-09-26 13:02:25\n" * 3, "the stamp '2300-09-26 13:02:25'; expected a date"),
        ("2011-09-26 13:02:25\n" * 3, "in timestamps.txt; expected one after 1317042145000000000 ns"),
    ],
)
def test_stamps_of_kitti_raw_that_are_none(tmp_path: Path, lines: str, reason: str) -> None:
    folder = raw(tmp_path)
    (folder / "timestamps.txt").write_text(lines)
    with pytest.raises(DataError, match=reason) as caught:
        open_source(folder)
    assert "\n" not in str(caught.value)
    assert [stamp for stamp, _ in told(open_source(folder, fps=10))] == [0, 100_000_000, 200_000_000]


def test_cameras_of_kitti_raw_have_stamps_of_their_own(tmp_path: Path) -> None:
    left = open_source(raw(tmp_path))
    right = open_source(raw(tmp_path, "image_01", "25.970 26.060 26.185"))
    pair = pair_up(left, right)
    assert [found.number for frame in left.frames() if (found := pair(frame)) is not None] == [0, 1, 2]
    (tmp_path / right.name / "0000000001.png").unlink()
    pair = pair_up(left, open_source(tmp_path / right.name))
    assert [None if (found := pair(frame)) is None else found.number for frame in left.frames()] == [0, None, 1]
    with pytest.raises(DataError, match="no image has the stamp of one of"):
        pair_up(left, open_source(raw(tmp_path, "image_03", "35.970 36.060 36.185")))


@pytest.mark.parametrize("way", ["there", "link"])
@pytest.mark.parametrize("kind", ["euroc", "tum", "kitti"])
def test_the_list_above_is_found_by_any_name_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, way: str
) -> None:
    home = tmp_path / "set"
    folder = home / {"euroc": "data", "tum": "rgb", "kitti": "image_1"}[kind]
    listed = {"euroc": "data.csv", "tum": "rgb.txt", "kitti": "times.txt"}[kind]
    write(folder / "0.png", 7)
    (home / listed).write_text({"euroc": "5000000000,0.png\n", "tum": "5 rgb/0.png\n", "kitti": "5\n"}[kind])
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    source = open_source(Path(".") if way == "there" else tmp_path / "link")
    assert told(source) == [(5_000_000_000, 7)]
    assert {os.path.realpath(path) for path in source.files} == {str(home / listed), str(folder / "0.png")}


def test_a_rate_gets_past_a_bad_list(tmp_path: Path) -> None:
    write(tmp_path / "data" / "1.png", 1)
    write(tmp_path / "data" / "2.png", 2)
    for rows in ("x,1.png\ny,2.png\n", "5,1.png\n5,2.png\n"):
        (tmp_path / "data.csv").write_text(rows)
        assert told(open_source(tmp_path, fps=10)) == [(0, 1), (100000000, 2)]


def test_lists_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    write(tmp_path / "rgb" / "1.png", 1)
    (tmp_path / "rgb.txt").write_bytes("\ufeff# color\n5 rgb/1.png\n".encode())
    assert told(open_source(tmp_path)) == [(5_000_000_000, 1)]
    (tmp_path / "rgb.txt").write_bytes("\ufeff5 rgb/1.png\n".encode())
    assert told(open_source(tmp_path)) == [(5_000_000_000, 1)]


def test_names_may_be_stamps(tmp_path: Path) -> None:
    for n, name in enumerate(("1403636579763555584", "999999999813555456")):
        write(tmp_path / "ns" / f"{name}.png", n)
    assert told(open_source(tmp_path / "ns")) == [(999999999813555456, 1), (1403636579763555584, 0)]
    for n, name in enumerate(("9.5", "10.25")):
        write(tmp_path / "s" / f"{name}.png", n)
    assert told(open_source(tmp_path / "s")) == [(9_500_000_000, 0), (10_250_000_000, 1)]
    write(tmp_path / "s" / "cover.png")
    with pytest.raises(DataError, match=r"name of cover\.png is no stamp, those of 2 others are"):
        open_source(tmp_path / "s")
    assert len(told(open_source(tmp_path / "s", fps=10))) == 3
    write(tmp_path / "twice" / "1.5.png")
    write(tmp_path / "twice" / "1.50.jpg")
    with pytest.raises(DataError, match="expected one after 1500000000 ns"):
        open_source(tmp_path / "twice")


def test_other_names_go_by_their_numbers_and_a_rate(tmp_path: Path) -> None:
    folder = tmp_path / "with spaces"
    for n in (10, 9, 100, 1):
        write(folder / f"img {n}.png", n)
    (folder / "notes.txt").write_text("x")
    write(folder / ".hidden.png")
    (folder / "below").mkdir()
    write(folder / "below" / "2.png")
    source = open_source(folder)
    assert told(source) == [(0, 1), (33333333, 9), (66666667, 10), (100000000, 100)]
    assert not source.stamped
    assert [stamp for stamp, _ in told(open_source(folder, fps=4))] == [0, 250000000, 500000000, 750000000]


@pytest.mark.parametrize(
    "names", [("1000000000", "1050000000", "1100000000"), ("1733000000000", "1733000000050"), ("0", "33333")]
)
def test_names_that_are_times_of_an_unknown_unit_are_refused(tmp_path: Path, names: Sequence[str]) -> None:
    for name in names:
        write(tmp_path / f"{name}.png")
    with pytest.raises(DataError, match=rf"names such as {names[1]} rise by \d+, .* 18 or 19 digits, .* or --fps"):
        open_source(tmp_path)
    assert open_source(tmp_path, fps=20).interval_ns == 50_000_000


@pytest.mark.parametrize(
    "names", [("0000000000", "0000000010", "0000000020"), ("8", "108"), ("20261201", "20261202"), ("7",)]
)
def test_numbers_that_count_frames_are_no_times(tmp_path: Path, names: Sequence[str]) -> None:
    for name in names:
        write(tmp_path / f"{name}.png")
    assert not open_source(tmp_path).stamped


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("000", "050", "100"), "050 follows 000, but images are taken to be evenly apart, at 30 frames a second; "),
        (("7", "8", "10"), "10 follows 8, but"),
        (("7", "8", "9"), ""),
        (("a0", "a50"), ""),
        (("1403636579763555584", "1403636579813555456"), ""),
    ],
)
def test_numbers_that_are_not_used_are_told(tmp_path: Path, names: Sequence[str], said: str) -> None:
    for name in names:
        write(tmp_path / f"{name}.png")
    doubt = doubt_of_names(open_source(tmp_path))
    assert said in doubt
    assert bool(doubt) == bool(said)


def test_a_rate_that_is_given_wins_over_stamps(tmp_path: Path) -> None:
    source = open_source(euroc(tmp_path), fps=10)
    assert told(source) == [(0, 0), (100000000, 10)]
    assert not source.stamped


def test_links_and_what_cannot_be_read(tmp_path: Path) -> None:
    disk, folder = tmp_path / "disk", tmp_path / "folder"
    folder.mkdir()
    (folder / "1.png").symlink_to(write(disk / "a.png", 7))
    (folder / "2.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "3.png").write_bytes(b"no image")
    (tmp_path / "link").symlink_to(folder)
    source = open_source(tmp_path / "link")
    first, *others = source.frames()
    image = source.read(first)
    assert image is not None
    assert image.flat[0] == 7
    for frame, reason in zip(others, ("no such file", "not an image"), strict=True):
        with pytest.raises(ImageError, match=reason) as caught:
            source.read(frame)
        assert frame.name in str(caught.value)


def video(path: Path, levels: list[int], fps: float = 12.5) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (64, 48))
    assert writer.isOpened()
    for level in levels:
        writer.write(np.full((48, 64, 3), level, np.uint8))
    writer.release()
    return path


def test_a_video_has_its_rate(tmp_path: Path) -> None:
    path = video(tmp_path / "a walk: 1.avi", [10, 20, 30, 40])
    source = open_source(path)
    found = told(source)
    assert [stamp for stamp, _ in found] == [0, 80_000_000, 160_000_000, 240_000_000]
    np.testing.assert_allclose([level for _, level in found], [10, 20, 30, 40], atol=2)
    assert (source.count, source.interval_ns, source.stamps) == (4, 80_000_000, "12.5 frames a second")
    assert [stamp for stamp, _ in told(open_source(path, fps=2))] == [0, 500_000_000, 1_000_000_000, 1_500_000_000]
    sparse = open_source(path)
    third = list(zip(range(4), sparse.frames(), strict=False))[2][1]
    image = sparse.read(third)
    assert image is not None
    assert abs(int(image.flat[0]) - 30) <= 2


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: p / "nowhere", "no such folder or file"),
        (lambda p: write(p / "a.png"), "is an image"),
        (lambda p: (p / "empty").mkdir() or p / "empty", "has no image"),
        (lambda p: (p / "a.mp4").write_bytes(b"") or p / "a.mp4", "is no video"),
        (lambda p: (p / "a.mp4").write_bytes(b"x" * 999) and p / "a.mp4", "is no video"),
        (lambda p: Path("/dev/null"), "is no regular file"),
    ],
)
def test_what_is_no_source_is_refused(tmp_path: Path, make: object, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        open_source(make(tmp_path))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("", "has no frame"),
        ("#timestamp,filename\nx,1.png\n", "the stamp 'x'"),
        ("1.png\n", "the line '1.png'; expected nanoseconds, a comma and a file name"),
        ("5,1.png\n5,2.png\n", "has the stamp 5 ns in data.csv; expected one after 5 ns"),
        ("1e99999999,1.png\n", "the stamp '1e99999999'"),
        ("nan,1.png\n2,2.png\n", "the stamp 'nan'"),
        ("timestamp,filename\n2,2.png\n", None),
    ],
)
def test_lists_that_are_none(tmp_path: Path, rows: str, reason: str | None) -> None:
    write(tmp_path / "data" / "1.png")
    (tmp_path / "data.csv").write_text(rows)
    if reason is None:  # a heading
        assert open_source(tmp_path).count == 1
        return
    with pytest.raises(DataError, match=reason):
        open_source(tmp_path)


def folder_of(names: list[str], stamps: list[int] | None = None, home: str = "right") -> ImageFolder:
    listed = stamps or [n * 10**9 for n in range(len(names))]
    return ImageFolder(home, "stamps", stamps is not None, [Path(name) for name in names], listed)


def paired(left: ImageFolder, right: ImageFolder) -> list[str | None]:
    pair = pair_up(left, right)
    return [None if (found := pair(frame)) is None else found.name for frame in left.frames()]


def test_pairs_are_found_by_stamps_names_or_numbers() -> None:
    second = 10**9
    left = folder_of(["a", "b", "c"], [second, 2 * second, 3 * second], "left")
    right = folder_of(["x", "y", "z"], [0, second + 900_000, 3 * second - 900_000])
    assert paired(left, right) == ["y", None, "z"]
    assert paired(left, folder_of(["x"], [2 * second])) == [None, "x", None]
    with pytest.raises(DataError, match="no image has the stamp of one of left"):
        pair_up(left, folder_of(["x", "y"], [5 * second, 6 * second]))
    assert paired(folder_of(["a", "b"], home="left"), folder_of(["b", "c"])) == [None, "b"]
    numbered = folder_of(["l1", "l2"], home="left")
    assert paired(numbered, folder_of(["r1", "r2"])) == ["r1", "r2"]
    with pytest.raises(DataError, match="has 1 images, left 2"):
        pair_up(numbered, folder_of(["r1"]))


def test_a_pair_has_two_sides(tmp_path: Path) -> None:
    folder, path = euroc(tmp_path), video(tmp_path / "a.avi", [10, 20])
    (tmp_path / "link").symlink_to(folder / "data")
    (tmp_path / "b.avi").symlink_to(path)
    for left, right in ((tmp_path, folder), (folder, tmp_path / "link"), (path, tmp_path / "b.avi")):
        with pytest.raises(DataError, match="is the left one, too; expected the images of another camera"):
            pair_up(open_source(left), open_source(right))


def test_videos_of_a_pair_have_one_rate(tmp_path: Path) -> None:
    left, near, far = (video(tmp_path / f"{fps}.avi", [10, 20], fps=fps) for fps in (25.0, 25.1, 30.0))
    with pytest.raises(DataError, match=r"30 frames a second, .*25 frames a second; expected the same, or --fps"):
        pair_up(open_source(left), open_source(far))
    for fps, right in ((None, near), (10, far)):
        pair = pair_up(open_source(left, fps=fps), open_source(right, fps=fps))
        other = pair(next(open_source(left, fps=fps).frames()))
        assert other is not None
        assert other.name == f"{right}: frame 0"


def test_a_mask_is_where_an_image_is_not_black(tmp_path: Path) -> None:
    image = np.zeros((12, 16, 3), np.uint8)
    image[3, 4] = (0, 0, 1)
    cv2.imwrite(str(tmp_path / "mask.png"), image)
    mask = read_mask(tmp_path / "mask.png")
    assert (mask.shape, np.argwhere(mask).tolist()) == ((12, 16), [[3, 4]])
    with pytest.raises(ImageError, match="black everywhere"):
        read_mask(write(tmp_path / "black.png"))
