"""Keep a pruned model sparse in a Lightning Fabric loop, sharpness-aware: `python examples/trainers/fabric_loop.py`."""

import torch
from lightning.fabric import Fabric
from sklearn.datasets import load_digits
from torch.nn.utils import prune

import flatsparse as fs

digits = load_digits()
data = list(zip(torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target), strict=True))
loader = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True)
model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
prune.l1_unstructured(model[0], "weight", amount=0.9)
prune.remove(model[0], "weight")

optimizer = fs.S2SAM(torch.optim.AdamW(model.parameters(), lr=1e-2), rho=0.05)
training = fs.sparsify(model, optimizer, "static", masks=fs.masks_from(model), steps=len(loader))
fabric = Fabric(accelerator="cpu", precision="bf16-mixed")
model, optimizer = fabric.setup(model, optimizer)
for inputs, targets in fabric.setup_dataloaders(loader):
    fabric.backward(torch.nn.functional.cross_entropy(model(inputs), targets))
    fabric.clip_gradients(model, optimizer, max_norm=1.0)
    optimizer.step()
    optimizer.zero_grad()
fabric.save("mlp-sparse.ckpt", {"model": model, "optimizer": optimizer})  # the optimizer's state holds the masks
print(training.report())
saved = torch.load("mlp-sparse.ckpt")["model"]
assert all(saved[name][~mask].count_nonzero() == 0 for name, mask in training.masks.items())
