#!/usr/bin/env python3
"""Generates the golden files of a tiny random Llama with `transformers` and `peft` on the CPU.

    make_golden.py write DIR           writes base model, adapter, logits, loss and LoRA gradients
    make_golden.py check BASE ADAPTER  loads files that the trainer wrote and prints a summary of their logits

`tests/golden.rs` and `tests/cuda` compare the trainer with the committed files. Needs torch, transformers,
peft and safetensors.
"""
import json
import os
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

TOKENS = [256, 51, 55, 43, 53, 61, 52, 50, 257]
LEARNED_FROM = 5  # tokens from here on are learned, each predicted by the one before it
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def write(directory, name, tied):
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=264, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=10000.0,
        tie_word_embeddings=tied, bos_token_id=256, eos_token_id=257, attn_implementation="eager")
    model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    base = os.path.join(directory, name)
    model.save_pretrained(base, safe_serialization=True)
    for extra in ("generation_config.json",):
        if os.path.exists(os.path.join(base, extra)):
            os.remove(os.path.join(base, extra))
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM")
    peft = get_peft_model(model, lora)
    with torch.no_grad():
        for parameter_name, parameter in peft.named_parameters():
            if "lora_" in parameter_name:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    peft.save_pretrained(os.path.join(base, "adapter"), safe_serialization=True)
    readme = os.path.join(base, "adapter", "README.md")
    if os.path.exists(readme):
        os.remove(readme)
    tokens = torch.tensor([TOKENS])
    labels = tokens.clone()
    labels[0, :LEARNED_FROM] = -100
    out = peft(input_ids=tokens, labels=labels)
    out.loss.backward()
    gradients = {
        n.replace(".default", ""): p.grad.contiguous()
        for n, p in peft.named_parameters() if p.grad is not None
    }
    save_file({"logits": out.logits[0].detach().contiguous()}, os.path.join(base, "logits.safetensors"))
    save_file(gradients, os.path.join(base, "gradients.safetensors"))
    with open(os.path.join(base, "expected.json"), "w") as file:
        json.dump({"tokens": TOKENS, "learned_from": LEARNED_FROM, "loss": out.loss.item()}, file)


def check(base, adapter):
    model = LlamaForCausalLM.from_pretrained(base, attn_implementation="eager").float().eval()
    peft = PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        logits = peft(input_ids=torch.tensor([TOKENS])).logits[0]
    total, last = logits.double().sum().item(), logits[-1, :6].tolist()
    print(json.dumps({"shape": list(logits.shape), "sum": total, "last": last}))


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "write":
        write(sys.argv[2], "untied", False)
        write(sys.argv[2], "tied", True)
    elif len(sys.argv) == 4 and sys.argv[1] == "check":
        check(sys.argv[2], sys.argv[3])
    else:
        sys.exit(__doc__)
