"""Backbones: load one, find the sites where methods act, tell one from another."""

from vitune.backbones.backbone import Backbone as Backbone
from vitune.backbones.bundled import bundled_names as bundled_names
from vitune.backbones.fingerprint import bare_name as bare_name
from vitune.backbones.fingerprint import fingerprint as fingerprint
from vitune.backbones.heads import start_heads as start_heads
from vitune.backbones.identity import identity as identity
from vitune.backbones.identity import local_files as local_files
from vitune.backbones.identity import local_folder as local_folder
from vitune.backbones.pixels import preprocessing_of as preprocessing_of
from vitune.backbones.preferred import notice_of as notice_of
from vitune.backbones.preferred import preferred_backbone as preferred_backbone
from vitune.backbones.sites import ROLES as ROLES
from vitune.backbones.sites import Site as Site
from vitune.backbones.sites import find_sites as find_sites
from vitune.backbones.sites import head_name as head_name
from vitune.backbones.sites import head_names as head_names
from vitune.backbones.sites import sites_with_roles as sites_with_roles
from vitune.backbones.sources import absolute_backbone as absolute_backbone
from vitune.backbones.sources import load_backbone as load_backbone
from vitune.backbones.tokens import TokenLayout as TokenLayout
from vitune.backbones.tokens import num_prefix_tokens as num_prefix_tokens
from vitune.backbones.tokens import token_layout as token_layout
from vitune.backbones.tower import TowerClassifier as TowerClassifier
from vitune.backbones.tower import logits_of as logits_of
