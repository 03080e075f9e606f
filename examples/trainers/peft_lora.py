"""LoRA on a pruned language model, merged with its zeros; two lines of flatsparse, and the check of what they promise."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import flatsparse as fs

sizes = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=4))
with torch.no_grad():  # your own model is pruned already
    for name, weight in model.named_parameters():
        if "proj" in name:
            weight[weight.abs() < weight.abs().median()] = 0

model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", lora_dropout=0.05))
masks = fs.mask_adapters(model)
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
optimizer = fs.S2SAM(optimizer, rho=0.05).follow(model)

text = torch.tensor(list(b"She sells sea shells by the sea shore. " * 80)).split(32)[:-1]
quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_steps": 10}
data = [{"input_ids": letters, "labels": letters} for letters in text]
Trainer(model, TrainingArguments(**quiet), train_dataset=data, optimizers=(optimizer, None)).train()

merged = model.merge_and_unload()
weights = merged.state_dict()
assert all(not weights[name][~mask].any() for name, mask in masks.items())
print(f"{sum(int((~mask).sum()) for mask in masks.values())} weights were zero and still are")
