"""Encoded images and masks as what the network takes, within a limit of pixels, and the memory that this takes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from frontend.errors import ImageError, ShapeError, is_lack_of_memory
from frontend.extractor import Prepared, SuperPoint
from frontend.image import decode_image
from frontend.image_header import decoding_bytes, header_size
from frontend.types import BoolArray
from service.errors import BadImageError, TooLargeError, UnavailableError
from service.masks import Mask, PackedMask, check_size, mask_name, mask_of, size_of, together

_BLACK_ALONE = 255  # white of masks: labels in 16 bits that were scaled by the largest would lose the small ones
_REDUCED = 8  # bytes a pixel where resize makes it smaller: colours, and grays as bytes and as floats


class Decoder:
    """Decodes images and masks; its methods may run in any thread.

    Args:
        max_pixels_mp: of an image as it is, and as resized, megapixels.
    """

    def __init__(self, max_pixels_mp: float) -> None:
        self.max_pixels_mp = max_pixels_mp

    def _check_pixels(self, extractor: SuperPoint, name: str, size: tuple[int, int]) -> None:
        """Refuse an image that is over the limit as it is, or as resized.

        Raises:
            TooLargeError: it is.
        """
        most, (width, height) = self.max_pixels_mp, size
        if width * height > most * 1e6:
            raise TooLargeError(f"{name} is {width} x {height} pixels; expected at most {most:g} megapixels")
        pixels = _network_pixels(extractor, width, height)
        if pixels > most * 1e6:
            made = f"resize makes {pixels / 1e6:.1f} megapixels of {name}, {width} x {height}"
            raise TooLargeError(f"{made}; expected at most {most:g}")

    def nbytes(self, extractor: SuperPoint, data: bytes, name: str) -> int:
        """The most that an image holds at once until the device has worked on it, by its header.

        That is what the decoder holds, see :func:`frontend.image_header.decoding_bytes`, and later bytes of colours and
        grays with what makes them smaller, or with the network's input and its copy with padding.

        Raises:
            TooLargeError: it is over the limit of pixels.
        """
        size = header_size(data)
        if size is not None:
            self._check_pixels(extractor, name, size)
        most = self.max_pixels_mp * 1e6
        width, height = size or (most**0.5, most**0.5)  # the most that it may be
        given, seen = width * height, min(_network_pixels(extractor, width, height), most)
        return int(max(max(decoding_bytes(data), _REDUCED) * given, 4 * given + 8 * seen))

    def mask_nbytes(self, extractor: SuperPoint, mask: Mask) -> int:
        """The same of a mask: one that is to be decoded is an image of its own."""
        if isinstance(mask, PackedMask):
            return mask.size[0] * mask.size[1]
        return self.nbytes(extractor, mask[1], mask[0])

    def _decode(self, extractor: SuperPoint, data: bytes, name: str, white: int | None) -> NDArray[np.uint8]:
        # without its own limit: too many pixels are another refusal than what cannot be read
        image = decode_image(data, name, max_pixels=sys.maxsize, white=white)
        self._check_pixels(extractor, name, size_of(image))
        return image

    def _decode_mask(self, extractor: SuperPoint, mask: Mask, expected: tuple[int, int], of: str) -> BoolArray:
        if isinstance(mask, PackedMask):
            image = "the right image" if of == "right" else "the image"
            check_size(f"the sequence's {mask_name(of)}", mask.size, expected, image)
            return mask.unpacked()
        name, data = mask
        decoded = self._decode(extractor, data, name, _BLACK_ALONE)
        check_size(name, size_of(decoded), expected, "the image")
        return mask_of(decoded, name)

    def prepare(self, extractor: SuperPoint, data: bytes, name: str, masks: Sequence[Mask] = ()) -> Prepared:
        """An encoded image as the network takes it, with keypoints where all of its masks allow them.

        Raises:
            BadImageError: it or a mask cannot be read, a mask has another size, or is black everywhere.
            TooLargeError: it or a mask is over the limit of pixels.
            UnavailableError: there is no memory for it now.
        """
        with _refusing(name):
            image = self._decode(extractor, data, name, extractor.config.white)
            allowed = together([self._decode_mask(extractor, mask, size_of(image), name) for mask in masks])
            return extractor.prepare(image, mask=allowed)

    def mask(self, extractor: SuperPoint, data: bytes, name: str) -> PackedMask:
        """An encoded mask, for a sequence to keep.

        Args:
            extractor: of the sequence.
            data: an encoded image.
            name: for errors.

        Raises:
            BadImageError: it cannot be read, or is black everywhere.
            TooLargeError: it is over the limit of pixels.
            UnavailableError: there is no memory for it now.
        """
        with _refusing(name):
            return PackedMask.of(mask_of(self._decode(extractor, data, name, _BLACK_ALONE), name))


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Refuse, as the service does, an image that cannot be decoded and prepared."""
    try:
        yield
    except (ImageError, ShapeError) as error:
        raise BadImageError(str(error)) from None
    except Exception as error:
        if not is_lack_of_memory(error):
            raise
        raise UnavailableError(f"{name} does not fit into the memory that is free now") from None


def _network_pixels(extractor: SuperPoint, width: float, height: float) -> float:
    """Pixels that the network sees of an image, but for padding."""
    # a header may say 0 x 0
    scale = 1.0 if extractor.config.resize is None else extractor.config.resize / max(width, height, 1)
    return width * height * scale**2
