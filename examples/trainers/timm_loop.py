"""Keep a pruned model sparse in a loop of timm's parts, sharpness-aware: `python examples/trainers/timm_loop.py`."""

import torch
from sklearn.datasets import load_digits
from timm.scheduler import CosineLRScheduler
from timm.utils import CheckpointSaver, ModelEmaV3, NativeScaler
from torch.nn.utils import prune

import flatsparse as fs

data = list(zip(*(torch.tensor(part) for part in load_digits(return_X_y=True)), strict=True))
loader = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True)
model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
prune.remove(prune.l1_unstructured(model[0], "weight", amount=0.9), "weight")

optimizer = fs.S2SAM(torch.optim.AdamW(model.parameters(), lr=1e-2), rho=0.05)
training = fs.sparsify(model, optimizer, "static", masks=fs.masks_from(model), steps=len(loader))
average, scaler = ModelEmaV3(model, decay=0.9), NativeScaler(device="cpu")
scheduler = CosineLRScheduler(optimizer, t_initial=len(loader), t_in_epochs=False)
for update, (inputs, targets) in enumerate(loader, start=1):
    loss = torch.nn.functional.cross_entropy(model(inputs.float() / 16), targets)
    scaler(loss, optimizer, clip_grad=1.0, parameters=model.parameters())
    optimizer.zero_grad()
    average.update(model, step=update)
    training.zero_outside(average)  # needed where masks move, as those of "rigl" do
    scheduler.step_update(num_updates=update)
saver = CheckpointSaver(model, optimizer, model_ema=average, amp_scaler=scaler)
saver.save_checkpoint(epoch=0)  # the masks are in its "optimizer"
assert all(average.module.get_parameter(name)[~mask].count_nonzero() == 0 for name, mask in training.masks.items())
