"""Using a trained run: load it, score it on labelled images, predict unlabelled ones."""

from vitune.inference.adding_exits import add_exits as add_exits
from vitune.inference.adding_exits import calibrate_exits as calibrate_exits
from vitune.inference.evaluate import evaluate as evaluate
from vitune.inference.load import LoadedRun as LoadedRun
from vitune.inference.load import load_run as load_run
from vitune.inference.merging import merge_run as merge_run
from vitune.inference.predict import Prediction as Prediction
from vitune.inference.predict import predict as predict
from vitune.inference.predict import predictions_csv as predictions_csv
from vitune.inference.run_scores import evaluate_run as evaluate_run
