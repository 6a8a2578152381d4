"""The SVD view of an adaptation, and how much of the base it kept; for any method.

`spectrum(model)` measures the weights, `measure_retention(model, images)` the features, and
`write_spectrum` puts both into files and plots. `map_effects` summarises by method what was done to
left basis, spectrum and right basis, also during training if a run kept snapshots.
"""

from vitune.analysis.intruders import AUTHORS, IntruderRule
from vitune.analysis.map_effects import MapEffect, effect_cells, map_effects
from vitune.analysis.pairs import WeightPair, WeightPairs, weight_pairs
from vitune.analysis.retention import BlockRetention, Retention, measure_retention
from vitune.analysis.similarity import linear_cka
from vitune.analysis.spectrum_files import write_spectrum
from vitune.analysis.spectrum_report import RoleSummary, SpectrumReport, spectrum
from vitune.analysis.weight_change import ChangedWeight, WeightChange, compare_weights

__all__ = [
    "AUTHORS",
    "BlockRetention",
    "ChangedWeight",
    "IntruderRule",
    "MapEffect",
    "Retention",
    "RoleSummary",
    "SpectrumReport",
    "WeightChange",
    "WeightPair",
    "WeightPairs",
    "compare_weights",
    "effect_cells",
    "linear_cka",
    "map_effects",
    "measure_retention",
    "spectrum",
    "weight_pairs",
    "write_spectrum",
]
