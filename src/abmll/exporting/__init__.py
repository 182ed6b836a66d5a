"""Adapters for other programs: the mean as a LoRA, whole merged models, posterior draws, a calibrated mean."""

from abmll.exporting.calibrated import Calibration, export_calibrated
from abmll.exporting.mean import export_mean
from abmll.exporting.merged import MergeReport, export_merged
from abmll.exporting.size import check_size, merged_bytes

__all__ = [
    "Calibration",
    "MergeReport",
    "check_size",
    "export_calibrated",
    "export_mean",
    "export_merged",
    "merged_bytes",
]
