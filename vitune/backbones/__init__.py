"""Backbones: load one, find the sites where methods act, identify it by fingerprint."""

from vitune.backbones.backbone import Backbone
from vitune.backbones.bundled import bundled_names
from vitune.backbones.fingerprint import bare_name, fingerprint
from vitune.backbones.heads import num_outputs, start_heads
from vitune.backbones.hf_saving import make_savable
from vitune.backbones.identity import identity, local_files, local_folder
from vitune.backbones.observation import Call, Observation, observe, run_once
from vitune.backbones.pixels import preprocessing_of
from vitune.backbones.preferred import BUNDLED, OWN_IMAGES, notice_of, preferred_backbone
from vitune.backbones.rehearsal import rehearsed
from vitune.backbones.sites import ROLES, Site, find_sites, head_name, head_names, sites_with_roles
from vitune.backbones.sources import absolute_backbone, load_backbone
from vitune.backbones.structure import (
    IN_PROJECTION,
    STAND_INS,
    WRAPPED,
    network,
    root_prefix,
    unwrapped,
    walk,
)
from vitune.backbones.tokens import TokenLayout, num_prefix_tokens, token_layout
from vitune.backbones.tower import TowerClassifier, logits_of
from vitune.backbones.wording import one_line

__all__ = [
    "BUNDLED",
    "IN_PROJECTION",
    "OWN_IMAGES",
    "ROLES",
    "STAND_INS",
    "WRAPPED",
    "Backbone",
    "Call",
    "Observation",
    "Site",
    "TokenLayout",
    "TowerClassifier",
    "absolute_backbone",
    "bare_name",
    "bundled_names",
    "find_sites",
    "fingerprint",
    "head_name",
    "head_names",
    "identity",
    "load_backbone",
    "local_files",
    "local_folder",
    "logits_of",
    "make_savable",
    "network",
    "notice_of",
    "num_outputs",
    "num_prefix_tokens",
    "observe",
    "one_line",
    "preferred_backbone",
    "preprocessing_of",
    "rehearsed",
    "root_prefix",
    "run_once",
    "sites_with_roles",
    "start_heads",
    "token_layout",
    "unwrapped",
    "walk",
]
