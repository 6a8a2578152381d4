"""Using a trained run: load it, score it on labelled images, predict unlabelled ones."""

from vitune.inference.adding_exits import add_exits, calibrate_exits
from vitune.inference.evaluate import evaluate
from vitune.inference.load import LoadedRun, load_run
from vitune.inference.merging import Merged, merge_and_tell, merge_run
from vitune.inference.own_images import home_of, own_splits
from vitune.inference.predict import Prediction, predict, predictions_csv
from vitune.inference.publishing import Licences, Pushed, push_run
from vitune.inference.rebalancing import Rebalanced, rebalance_run
from vitune.inference.run_scores import evaluate_run
from vitune.inference.seen import held_out

__all__ = [
    "Licences",
    "LoadedRun",
    "Merged",
    "Prediction",
    "Pushed",
    "Rebalanced",
    "add_exits",
    "calibrate_exits",
    "evaluate",
    "evaluate_run",
    "held_out",
    "home_of",
    "load_run",
    "merge_and_tell",
    "merge_run",
    "own_splits",
    "predict",
    "predictions_csv",
    "push_run",
    "rebalance_run",
]
