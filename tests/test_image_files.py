"""Files that are large, take memory, or are of a kind that OpenCV does not read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from frontend.errors import ImageError
from frontend.image import quiet_decoders, read_image

ROOT = Path(__file__).resolve().parent.parent


def encode(extension: str, image: np.ndarray) -> bytes:
    done, data = cv2.imencode(extension, image)
    assert done
    return data.tobytes()


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space")
def test_a_small_file_takes_little_memory_to_read(tmp_path: Path, make_scene) -> None:
    """Though the limit of a file is that of the largest image, which may be one of floats: 2 GiB."""
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(".jpg", make_scene(480, 640)))
    script = (
        "import resource, sys; from frontend.image import read_image\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 500_000_000,) * 2)\n"
        "print(read_image(sys.argv[1]).shape)"
    )
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("(480, 640, 3)\n", "")


def test_files_are_read_in_parts_up_to_the_limit(tmp_path: Path, rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (700, 900, 3), dtype=np.uint8)  # more than one part
    path = tmp_path / "a.bmp"
    path.write_bytes(encode(".bmp", image))
    np.testing.assert_array_equal(read_image(path, max_pixels=700 * 900), image)
    with path.open("ab") as file:
        file.truncate(32 * 700 * 900 + 1)
    with pytest.raises(ImageError, match="has more than 20160000 bytes, too many for an image of 630000 pixels"):
        read_image(path, max_pixels=700 * 900)


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"hevc", b"mif1", b"msf1"])
def test_what_phones_store_is_called_by_its_name(tmp_path: Path, make_scene, brand: bytes) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(encode(".avif", make_scene(40, 60)).replace(b"avif", brand).replace(b"av01", b"hvc1"))
    with quiet_decoders(), pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(caught.value) == f"{path}: is HEIC/HEIF, which OpenCV does not read; convert it to JPEG or PNG"
    whole = encode(".avif", make_scene(40, 60))
    path.write_bytes(whole[: len(whole) // 2])
    with quiet_decoders(), pytest.raises(ImageError, match="truncated or corrupt"):
        read_image(path)
