"""Which checkpoints are resident on a device, and whose turns are taken: one pure policy, driven by the pool and by the simulator alike."""

from symposia_shared.residency.demand import Demand
from symposia_shared.residency.policy import Decision, SwapAware
from symposia_shared.residency.view import Standing, View

__all__ = ["Decision", "Demand", "Standing", "SwapAware", "View"]
