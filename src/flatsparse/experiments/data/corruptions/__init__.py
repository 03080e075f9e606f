"""The common corruptions of images of Hendrycks & Dietterich (ICLR 2019): 15 kinds and 4 extra ones, at five severities."""

from flatsparse.experiments.data.corruptions.apply import CORRUPTIONS, corrupt
from flatsparse.experiments.data.corruptions.names import CATEGORIES, EXTRA, MAIN, SEVERITIES

__all__ = ["CATEGORIES", "CORRUPTIONS", "EXTRA", "MAIN", "SEVERITIES", "corrupt"]
