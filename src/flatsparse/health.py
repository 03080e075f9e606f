"""Dead filters, collapsed layers and the churn of an update; ``flatsparse.measure.topology`` by its public name."""

from flatsparse.measure.topology import Health, churn, health

__all__ = ["Health", "churn", "health"]
