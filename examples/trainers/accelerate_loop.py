"""Keep a pruned model sparse in an Accelerate loop, sharpness-aware: `python examples/trainers/accelerate_loop.py`."""

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch.nn.utils import prune

import flatsparse as fs

digits = load_digits()
data = list(zip(torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target), strict=True))
loader = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True)
model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
prune.l1_unstructured(model[0], "weight", amount=0.9)
prune.remove(model[0], "weight")

base = torch.optim.AdamW(model.parameters(), lr=1e-2)
optimizer = fs.S2SAM(base, rho=0.05)
training = fs.sparsify(model, optimizer, "static", masks=fs.masks_from(model), steps=len(loader) // 2)
accelerator = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=2)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
for inputs, targets in loader:
    with accelerator.accumulate(model):
        accelerator.backward(torch.nn.functional.cross_entropy(model(inputs), targets))
        optimizer.step()
        optimizer.zero_grad()
accelerator.save_state("mlp-sparse")  # model.safetensors with its zeros, optimizer.bin with the masks
print(training.report())
assert not (fs.masks_from("mlp-sparse")["0.weight"] & ~training.masks["0.weight"]).any()
