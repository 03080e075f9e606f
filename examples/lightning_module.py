"""A Lightning module: `flatsparse compare examples/lightning_module.py:train`, also with SAM, as Lightning passes a closure.

Four lines, marked, are not those of the plain script.
"""

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS, BATCH = 8, 50


class Digits(lightning.LightningModule):
    """A small net for the handwritten digits of scikit-learn."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch):
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        optimizer = self.arm.optimizer(optimizer)  # flatsparse
        self.arm.sparsify(self, optimizer, steps=self.trainer.estimated_stepping_batches)  # flatsparse
        return optimizer


def loader(part, shuffle=False):
    digits = load_digits()
    images, labels = torch.tensor(digits.data[part], dtype=torch.float32) / 16, torch.tensor(digits.target[part])
    return DataLoader(TensorDataset(images, labels), batch_size=BATCH, shuffle=shuffle)


def train(arm):  # flatsparse
    model = Digits()
    model.arm = arm  # flatsparse
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(max_epochs=EPOCHS, accelerator="cpu", devices=1, **quiet)
    trainer.fit(model, loader(slice(0, 600), shuffle=True))
    return trainer.test(model, loader(slice(1200, None)))[0]
