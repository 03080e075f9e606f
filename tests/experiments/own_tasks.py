"""Files of tasks of a user's own, for tests: each a text, written beside the run that takes it."""

START = """
import random
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset
from flatsparse import Task

def numbers(count, width, seed):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
"""

# Regression with dropout, on samples that are augmented by numbers from all three generators.
NOISY = (
    START
    + """
class Noisy(Dataset):
    def __init__(self, count, seed, noisy):
        self.inputs, self.noisy = numbers(count, 6, seed), noisy
    def __len__(self):
        return len(self.inputs)
    def __getitem__(self, index):
        inputs = self.inputs[index]
        wanted = inputs[:2].sum()
        if self.noisy:
            inputs = inputs + 0.1 * torch.randn(6) * random.random() + 0.1 * np.random.rand()
        return inputs, wanted

def model():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1), nn.Flatten(0))

def loss(model, batch):
    inputs, wanted = batch
    return F.mse_loss(model(inputs), wanted)

def score(model, batches):
    errors = torch.cat([(model(inputs) - wanted).abs() for inputs, wanted in batches])
    return {"error": float(errors.mean()), "worst": float(errors.max())}

def task():
    return Task(model, Noisy(48, 0, True), Noisy(16, 1, False), loss, score, better="lower")
"""
)

# Several labels for a sample, a score that is higher for better, and a validation set of its own.
SEVERAL = (
    START
    + """
def data(count, seed):
    inputs = numbers(count, 6, seed)
    return TensorDataset(inputs, (inputs[:, :3] > 0).float())

def loss(model, batch):
    return F.binary_cross_entropy_with_logits(model(batch[0]), batch[1])

def score(model, batches):
    right = [((model(inputs) > 0) == labels.bool()).float() for inputs, labels in batches]
    return {"labels right": torch.cat(right).mean()}

def task():
    return Task(lambda: nn.Sequential(nn.Linear(6, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3)),
        data(48, 0), data(16, 1), loss, score, validation=data(12, 2))
"""
)

# Sequences of unequal length, padded by a collate function; a network with an embedding and a recurrent layer.
SEQUENCES = (
    START
    + """
class Words(Dataset):
    def __init__(self, count, seed):
        source = torch.Generator().manual_seed(seed)
        lengths = torch.randint(1, 9, (count,), generator=source).tolist()
        self.words = [torch.randint(1, 20, (length,), generator=source) for length in lengths]
    def __len__(self):
        return len(self.words)
    def __getitem__(self, index):
        return self.words[index], int(self.words[index][0] > 9)

def padded(samples):
    words, labels = zip(*samples)
    lengths = torch.tensor([len(one) for one in words])
    return nn.utils.rnn.pad_sequence(words, batch_first=True), lengths, torch.tensor(labels)

class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 8, padding_idx=0)
        self.layer = nn.GRU(8, 8, batch_first=True)
        self.out = nn.Linear(8, 2)
    def forward(self, words, lengths):
        outputs, _ = self.layer(self.embedding(words))
        return self.out(outputs[torch.arange(len(words)), lengths - 1])

def loss(model, batch):
    words, lengths, labels = batch
    return F.cross_entropy(model(words, lengths=lengths), labels)

def score(model, batches):
    right = [model(words, lengths=lengths).argmax(1) == labels for words, lengths, labels in batches]
    return {"right": torch.cat(right).double().mean()}

def task():
    return Task(Reader, Words(48, 0), Words(16, 1), loss, score, collate=padded)
"""
)

# A stream with a length.
STREAM = (
    START
    + """
class Stream(IterableDataset):
    def __init__(self, count, seed):
        self.count, self.seed, self.epoch = count, seed, 0
    def __len__(self):
        return self.count
    def set_epoch(self, epoch):
        self.epoch = epoch
    def __iter__(self):
        for inputs in numbers(self.count, 6, self.seed + 100 * self.epoch):
            yield inputs + 0.1 * torch.randn(6), inputs[:1]

def loss(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])

def score(model, batches):
    return {"error": sum(float(loss(model, batch)) for batch in batches)}

def task():
    return Task(lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)),
        Stream(40, 0), Stream(16, 1), loss, score, better="lower")
"""
)

# Batches by name, and a network that takes and gives them, as those of Hugging Face do.
DICTS = (
    START
    + """
class Named(Dataset):
    def __init__(self, count, seed):
        self.inputs = numbers(count, 6, seed)
    def __len__(self):
        return len(self.inputs)
    def __getitem__(self, index):
        return {"inputs": self.inputs[index], "labels": int(self.inputs[index, 0] > 0), "name": f"sample {index}"}

class Named_(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    def forward(self, inputs, labels):
        logits = self.body(inputs)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}

def loss(model, batch):
    return model(inputs=batch["inputs"], labels=batch["labels"])["loss"]

def score(model, batches):
    right = [model(b["inputs"], labels=b["labels"])["logits"].argmax(1) == b["labels"] for b in batches]
    return {"right": torch.cat(right).float().mean().numpy()}

def task():
    return Task(Named_, Named(48, 0), Named(16, 1), loss, score)
"""
)

KINDS = {"noisy": NOISY, "several": SEVERAL, "sequences": SEQUENCES, "stream": STREAM, "dicts": DICTS}


def written(folder, text=NOISY, *changes, name="mine.py"):
    """Write a file, with each pair of changes its first for its second, and return what --task takes."""
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        assert old in text, f"nothing to change: {old}"
        text = text.replace(old, new)
    (folder / name).write_text(text)
    return f"{folder / name}:task"
