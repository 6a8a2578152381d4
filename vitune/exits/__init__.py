"""Early exits: easy images leave the network early, with a certified risk."""

from vitune.exits.bounds import check_share, images_needed, upper_bound
from vitune.exits.exit_cost import (
    Subject,
    block_share,
    cut_off,
    exit_gflops,
    full_gflops,
    seconds_per_image,
)
from vitune.exits.exit_folder import ExitsFolder, early_exit, find_exits
from vitune.exits.exit_heads import ExitHeads, norm_of, num_parameters, parse_places
from vitune.exits.leaving import EarlyExit, Exit, Outcome
from vitune.exits.points import Trunk, find_trunk
from vitune.exits.thresholds import (
    DEFINITIONS,
    NEVER,
    Certificate,
    Recorded,
    Thresholds,
    certify,
    errors,
    for_budget,
    leaving_exit,
)
from vitune.exits.training import ExitRecipe, exit_logits, features_of, train_exits

__all__ = [
    "DEFINITIONS",
    "NEVER",
    "Certificate",
    "EarlyExit",
    "Exit",
    "ExitHeads",
    "ExitRecipe",
    "ExitsFolder",
    "Outcome",
    "Recorded",
    "Subject",
    "Thresholds",
    "Trunk",
    "block_share",
    "certify",
    "check_share",
    "cut_off",
    "early_exit",
    "errors",
    "exit_gflops",
    "exit_logits",
    "features_of",
    "find_exits",
    "find_trunk",
    "for_budget",
    "full_gflops",
    "images_needed",
    "leaving_exit",
    "norm_of",
    "num_parameters",
    "parse_places",
    "seconds_per_image",
    "train_exits",
    "upper_bound",
]
