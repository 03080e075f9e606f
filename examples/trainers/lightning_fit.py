"""Keep a pruned model sparse in Lightning, sharpness-aware: `python examples/trainers/lightning_fit.py`."""

import lightning
import torch
from sklearn.datasets import load_digits
from torch.nn.utils import prune

import flatsparse as fs


class Digits(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
        prune.remove(prune.l1_unstructured(self.net[0], "weight", amount=0.9), "weight")

    def training_step(self, batch):
        return torch.nn.functional.cross_entropy(self.net(batch[0] / 16), batch[1])

    def configure_optimizers(self):
        optimizer = fs.S2SAM(torch.optim.AdamW(self.parameters(), lr=3e-3), rho=0.05)
        self.sparse = fs.sparsify(self, optimizer, "static", masks=fs.masks_from(self), steps=100)
        return optimizer


data = list(zip(*(torch.tensor(part) for part in load_digits(return_X_y=True)), strict=True))
model, trainer = Digits().double(), lightning.Trainer(max_steps=100, accelerator="cpu", logger=False)
trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=32, shuffle=True))
saved = torch.load(trainer.checkpoint_callback.best_model_path)["state_dict"]  # its "optimizer_states" hold the masks
assert all(saved[name][~mask].count_nonzero() == 0 for name, mask in model.sparse.masks.items())
