"""Times LoRA training steps of a random Llama with PyTorch and PEFT: the reference for `run.sh`.

Prints one line of JSON on standard output. Uses the same shape, rank, sequence length, batch and optimizer
as `target-trainer bench`: bf16 weights and activations without autocast, LoRA on all seven projections as
PEFT creates it, fused AdamW, gradient clipping at norm 1.0. Needs torch, transformers and peft.

    baseline.py [--shape llama124m] [--sequence 1024] [--batch 8] [--rank 16] [--steps 20] [--compile]
"""

import argparse
import json
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES = {
    "tiny": dict(
        vocab_size=264, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    ),
    "llama124m": dict(
        vocab_size=32000, hidden_size=768, intermediate_size=2560, num_hidden_layers=12,
        num_attention_heads=12, num_key_value_heads=12, tie_word_embeddings=True,
    ),
    "llama1b": dict(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22,
        num_attention_heads=32, num_key_value_heads=4,
    ),
}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="llama124m")
    parser.add_argument("--sequence", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=8)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda:0")
    args = parser.parse_args()

    torch.manual_seed(1)
    config = LlamaConfig(
        max_position_embeddings=args.sequence, attn_implementation="sdpa", **SHAPES[args.shape]
    )
    device = torch.device(args.device)
    with device:
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    lora = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=PROJECTIONS, lora_dropout=0.0)
    model = get_peft_model(model, lora)
    model.train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, fused=device.type == "cuda")
    forward_model = torch.compile(model) if args.compile else model
    tokens = torch.randint(0, config.vocab_size, (args.batch, args.sequence), device=device)

    def step() -> float:
        loss = forward_model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        # A trainer that logs its loss reads it back at every step; `target-trainer bench` does so too.
        return loss.item()

    for _ in range(args.warm_up):
        loss = step()
    durations_s = []
    for _ in range(args.steps):
        start = time.perf_counter()
        loss = step()
        durations_s.append(time.perf_counter() - start)
    durations_s.sort()
    print(
        json.dumps(
            {
                "who": "torch.compile" if args.compile else "torch eager",
                "version": torch.__version__,
                "tokens_per_step": args.batch * args.sequence,
                "seconds_per_step": durations_s[len(durations_s) // 2],
                "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
                "loss": loss,
            }
        )
    )


if __name__ == "__main__":
    main()
