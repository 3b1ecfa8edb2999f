"""LoRA training steps of a random Llama with PyTorch, transformers and PEFT: what `run.sh` measures our trainer against.

One line of JSON on standard output. Same shape, rank, sequence, batch and optimizer as `target-trainer bench`: bf16 weights
and activations, LoRA of all seven projections in f32 under autocast-free bf16 as PEFT makes them, fused AdamW, clipping at 1.0.
"""

import argparse
import json
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES = {
    "tiny": dict(vocab_size=264, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2),
    "llama124m": dict(vocab_size=32000, hidden_size=768, intermediate_size=2560, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=12, tie_word_embeddings=True),
    "llama1b": dict(vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4),
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
    config = LlamaConfig(max_position_embeddings=args.sequence, attn_implementation="sdpa", **SHAPES[args.shape])
    device = torch.device(args.device)
    with device:
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    lora = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=PROJECTIONS, lora_dropout=0.0)
    model = get_peft_model(model, lora)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=device.type == "cuda")
    stepping = torch.compile(model) if args.compile else model
    tokens = torch.randint(0, config.vocab_size, (args.batch, args.sequence), device=device)

    def step() -> float:
        loss = stepping(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        # As a trainer that logs its loss: our side reads it back at every step too.
        return loss.item()

    for _ in range(args.warm_up):
        loss = step()
    times = []
    for _ in range(args.steps):
        began = time.perf_counter()
        loss = step()
        times.append(time.perf_counter() - began)
    times.sort()
    print(
        json.dumps(
            {
                "who": "torch.compile" if args.compile else "torch eager",
                "version": torch.__version__,
                "tokens_per_step": args.batch * args.sequence,
                "seconds_per_step": times[len(times) // 2],
                "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
                "loss": loss,
            }
        )
    )


if __name__ == "__main__":
    main()
