"""Training: `fit`, its settings and the loop. Nothing here can open a test split."""

from vitune.training.config import TrainConfig as TrainConfig
from vitune.training.config import read_yaml as read_yaml
from vitune.training.fit import Trained as Trained
from vitune.training.fit import fit as fit
from vitune.training.observer import Observer as Observer
