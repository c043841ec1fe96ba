"""Monitoring of a run, coefficients refitted to it, metrics and reports."""

from lightning_root.diagnostics.measurements import Measurements as Measurements
from lightning_root.diagnostics.measurements import measure as measure
from lightning_root.diagnostics.metrics import MomentumCosine as MomentumCosine
from lightning_root.diagnostics.metrics import MomentumKurtosis as MomentumKurtosis
from lightning_root.diagnostics.metrics import OrthogonalizationError as OrthogonalizationError
from lightning_root.diagnostics.metrics import OutlierEnergy as OutlierEnergy
from lightning_root.diagnostics.metrics import OutlierFraction as OutlierFraction
from lightning_root.diagnostics.metrics import UpdateRMS as UpdateRMS
from lightning_root.diagnostics.monitor import ROOTMonitor as ROOTMonitor
from lightning_root.diagnostics.refit import ROOTRefit as ROOTRefit
from lightning_root.diagnostics.summary import RunSummary as RunSummary

__all__ = [
    "Measurements",
    "MomentumCosine",
    "MomentumKurtosis",
    "OrthogonalizationError",
    "OutlierEnergy",
    "OutlierFraction",
    "ROOTMonitor",
    "ROOTRefit",
    "RunSummary",
    "UpdateRMS",
    "measure",
]
