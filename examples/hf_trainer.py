"""A Hugging Face `Trainer`: `flatsparse compare examples/hf_trainer.py:train --better lower --sharpness s2sam random`.

Four lines, marked, are not those of the plain script. `Trainer` passes no closure, so SAM cannot be an arm.
"""

import torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

EPOCHS, BATCH = 8, 32
QUIET = {"save_strategy": "no", "logging_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True}


class Digits(Dataset):
    """Some of the handwritten digits of scikit-learn."""

    def __init__(self, part):
        digits = load_digits()
        self.images = torch.tensor(digits.images[part], dtype=torch.float32)[:, None] / 16
        self.labels = torch.tensor(digits.target[part])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def small_vit():
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=2, num_channels=1, num_labels=10, **sizes))


def accuracy(predicted):
    return {"accuracy": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())}


def train(arm):  # flatsparse
    data, held_out = Digits(slice(0, 640)), Digits(slice(1200, None))
    settings = {"num_train_epochs": EPOCHS, "per_device_train_batch_size": BATCH, "warmup_steps": 10, **QUIET}
    arguments = TrainingArguments(arm.folder, seed=arm.seed, **settings)  # flatsparse
    model = small_vit()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    optimizer = arm.optimizer(optimizer)  # flatsparse
    arm.sparsify(model, optimizer, steps=EPOCHS * len(data) // BATCH)  # flatsparse
    trainer = Trainer(
        model,
        arguments,
        train_dataset=data,
        eval_dataset=held_out,
        compute_metrics=accuracy,
        optimizers=(optimizer, None),
    )
    trainer.train()
    return trainer.evaluate()
