"""A watcher that ends a run as a kill would."""

from flatsparse.experiments.run.watcher import Silent


class Killed(BaseException):
    """Stands for a SIGKILL between two epochs."""


class KillAfter(Silent):
    """Raises once an epoch is finished, and saved."""

    def __init__(self, epoch):
        self.epoch = epoch

    def finished_epoch(self, record):
        if record.epoch == self.epoch:
            raise Killed
