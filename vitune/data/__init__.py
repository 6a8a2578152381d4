"""Images from any source as checked, decoded splits, and batches made from them."""

from vitune.data.augment import PRESETS, Augment, augmentation
from vitune.data.cache import CacheSettings
from vitune.data.checks import Findings, check_splits, present
from vitune.data.content import content_hash, content_hashes, default_cache_dir
from vitune.data.decode import MAX_MEGAPIXELS, Decoding, decode_bytes, decode_image, quiet_pillow
from vitune.data.demo import DEMOS
from vitune.data.folder import list_images
from vitune.data.grouping import in_groups, linked, one_per_group, with_groups
from vitune.data.holdout import hold_out
from vitune.data.inspection import Inspection, inspect_images
from vitune.data.labelled import load_labelled, load_unlabelled
from vitune.data.loader import (
    CachedImages,
    EpochSampler,
    as_is,
    batches,
    normalise,
    seeded_generator,
)
from vitune.data.readable import require_readable
from vitune.data.record_content import record_digests
from vitune.data.records import ImageList, Record
from vitune.data.remarks import TOLD, Remark
from vitune.data.source import SOURCES, absolute_source, is_source, open_source, spec_name
from vitune.data.split import UNLABELLED, Split
from vitune.data.splits import HeldOut, Splits, load_splits
from vitune.data.used import UsedImages
from vitune.data.views import FileViews

__all__ = [
    "DEMOS",
    "MAX_MEGAPIXELS",
    "PRESETS",
    "SOURCES",
    "TOLD",
    "UNLABELLED",
    "Augment",
    "CacheSettings",
    "CachedImages",
    "Decoding",
    "EpochSampler",
    "FileViews",
    "Findings",
    "HeldOut",
    "ImageList",
    "Inspection",
    "Record",
    "Remark",
    "Split",
    "Splits",
    "UsedImages",
    "absolute_source",
    "as_is",
    "augmentation",
    "batches",
    "check_splits",
    "content_hash",
    "content_hashes",
    "decode_bytes",
    "decode_image",
    "default_cache_dir",
    "hold_out",
    "in_groups",
    "inspect_images",
    "is_source",
    "linked",
    "list_images",
    "load_labelled",
    "load_splits",
    "load_unlabelled",
    "normalise",
    "one_per_group",
    "open_source",
    "present",
    "quiet_pillow",
    "record_digests",
    "require_readable",
    "seeded_generator",
    "spec_name",
    "with_groups",
]
