"""``superpoint align-matcher``: carry a learned matcher over to the features of another network."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from frontend.errors import ConfigError, DataError, ImageError

_ABOUT = """\
Fits a linear map from the descriptors of --to to those of --from, at the keypoints of --to in half of the photographs,
and writes the matcher with that map before its first layer. The other half tells how alike mapped descriptors are: with
a mean cosine of .7 and more, as of networks that were trained on one set of labels, the matcher does as it is; with
less, 'superpoint train lightglue --init' may start from it.
"""
_LONGEST = 640


def add_parser(subparsers: Any) -> None:
    """Add ``align-matcher`` to the command line."""
    parser = subparsers.add_parser(
        "align-matcher", help="carry a learned matcher over to another network's features", description=_ABOUT
    )
    parser.add_argument("--from", dest="source", required=True, metavar="NAME|PATH", help="the network it is for")
    parser.add_argument("--to", dest="target", required=True, metavar="NAME|PATH", help="the network it is to be for")
    parser.add_argument("--matcher", metavar="NAME|PATH", help="of the features of --from (default: the released one)")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of photographs")
    parser.add_argument(
        "--limit",
        type=int,
        default=64,
        metavar="N",
        help="of the photographs, evenly; half of them tell how well it maps (default: 64)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="matcher to write (.safetensors)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.out.suffix != ".safetensors":
        raise ConfigError(f"--out is '{args.out}'; expected a name that ends in .safetensors")
    if args.limit < 2:
        raise ConfigError(f"--limit is {args.limit}; expected 2 or more")
    import numpy as np

    from frontend.evaluation.pairs import load_bgr, reduce_image
    from frontend.extractor import SuperPoint
    from frontend.folders import find_images
    from frontend.matching.lightglue_weights import load_matcher, save_matcher
    from frontend.progress import Progress
    from frontend.training.matcher_alignment import align_matcher, descriptor_pairs, fit_alignment
    from frontend.weights import find_matcher_file, load_network, resolve, resolve_matcher, sha256_of

    extractor = SuperPoint.from_pretrained(args.target, device=args.device, precision="float32", runtime="torch")
    name, network = load_network(args.source)
    path = resolve_matcher(name) if args.matcher is None else find_matcher_file(args.matcher)
    matcher = load_matcher(path)
    if (held := matcher.config.input_dim) != network.config.descriptor_dim:
        raise ConfigError(
            f"matcher {path} takes descriptors of {held} values; expected"
            f" {network.config.descriptor_dim}, those of --from {args.source}"
        )
    if matcher.config.features not in ("", name):
        raise ConfigError(
            f"matcher {path} is for features of '{matcher.config.features}'; expected '{name}', of --from"
        )
    found = find_images(args.images)
    if len(found) < 2:
        raise DataError(f"folder {args.images} has {len(found)} images; expected 2 or more")
    chosen = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, args.limit).round().astype(int))]
    with Progress(len(chosen), "align", unit="image") as progress:

        def images() -> Iterator[np.ndarray]:
            for image in chosen:
                try:
                    yield reduce_image(load_bgr(args.images / image), _LONGEST)[0]
                except ImageError as error:
                    progress.write(f"skipped {error}")
                progress.update()

        alignment = fit_alignment(descriptor_pairs(extractor, network, images()))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    training = {
        "aligned_from": sha256_of(path),
        "features_sha256": sha256_of(resolve(args.target)[1]),
        "similarity": round(alignment.similarity, 4),
    }
    save_matcher(args.out, align_matcher(matcher, alignment, extractor.name), training)
    before = "" if np.isnan(alignment.unmapped) else f" ({alignment.unmapped:.3f} unmapped)"
    print(f"wrote {args.out}: mean cosine to the descriptors of {args.source} {alignment.similarity:.3f}{before}")
    if alignment.similarity <= alignment.unmapped:
        print("the map makes descriptors no more alike: without it the matcher does as well, or more images are needed")
    return 0
