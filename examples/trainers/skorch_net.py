"""Keep a pruned net sparse in skorch, sharpness-aware: `python examples/trainers/skorch_net.py`."""

import torch
from sklearn.datasets import load_digits
from skorch import NeuralNetClassifier
from torch.nn.utils import prune

import flatsparse as fs


class Net(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
        prune.remove(prune.l1_unstructured(self[0], "weight", amount=0.9), "weight")


class SparseClassifier(NeuralNetClassifier):
    def initialize_optimizer(self, *args):
        super().initialize_optimizer(*args)
        model, self.optimizer_ = self.module_, fs.S2SAM(self.optimizer_, rho=0.05)
        self.sparse_ = fs.sparsify(model, self.optimizer_, "static", masks=fs.masks_from(model), steps=230)
        return self


images, labels = load_digits(return_X_y=True)
net = SparseClassifier(Net, criterion=torch.nn.CrossEntropyLoss, optimizer=torch.optim.AdamW, lr=3e-3, batch_size=64)
net.fit(images.astype("float32") / 16, labels)
net.save_params(f_params="net-sparse.pt", f_optimizer="optimizer.pt")  # the second holds the masks
assert (torch.load("net-sparse.pt")["0.weight"] == 0).float().mean() > 0.89
