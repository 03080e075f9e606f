"""Keep a pruned Hugging Face model sparse in a `Trainer`, sharpness-aware: `python examples/trainers/hf_trainer.py`."""

import torch
from sklearn.datasets import load_digits
from torch.nn.utils import prune
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import flatsparse as fs

digits = load_digits()  # 64 pixels, which are read as 64 tokens of 17 kinds
data = [{"input_ids": torch.tensor(x).long(), "labels": y} for x, y in zip(digits.data, digits.target, strict=True)]
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
model = BertForSequenceClassification(BertConfig(vocab_size=17, num_labels=10, **sizes))
for layer in model.bert.encoder.modules():
    if isinstance(layer, torch.nn.Linear):
        prune.l1_unstructured(layer, "weight", amount=0.8)
        prune.remove(layer, "weight")

base = torch.optim.AdamW(model.parameters(), lr=2e-3)
optimizer = fs.S2SAM(base, rho=0.05)
training = fs.sparsify(model, optimizer, "static", masks=fs.masks_from(model), steps=60)

arguments = TrainingArguments("bert-sparse", max_steps=60, per_device_train_batch_size=32, report_to="none")
trainer = Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, None))
trainer.train()
trainer.save_model()
saved = BertForSequenceClassification.from_pretrained("bert-sparse").state_dict()
print(training.report())
assert all(saved[name][~mask].count_nonzero() == 0 for name, mask in training.masks.items())
