"""Turns the results of `run.sh` into a Markdown table: tokens per second, MFU, ratio to torch.compile.

    table.py results.jsonl

MFU is model FLOPs utilisation. FLOPs of LoRA training for each token, counted as matrix products:
  4 N      forward and backward through the frozen matrices, 2 N each: frozen matrices get no gradient
  6 A      the LoRA matrices: forward, gradient of the input, gradient of the weight
  6 L s h  causal attention: 2 L s h forward (half of the square), twice that backward; h = heads x head size
N: elements of all matrices that tokens are multiplied by, with the output head, without the embedding.
A: elements of the LoRA matrices. L: layers. s: tokens of a sequence.
The peak is that of the GPU's dense bf16 tensor cores, from NVIDIA's data sheets. Work that a kernel
recomputes is not counted. Ratios compare runs of the same round.
"""

import json
import statistics
import subprocess
import sys

SHAPES = {  # vocabulary, hidden, intermediate, layers, heads, kv heads, head size
    "llama124m": (32000, 768, 2560, 12, 12, 12, 64),
    "llama1b": (32000, 2048, 5632, 22, 32, 4, 64),
}
PEAK_TFLOPS = {"H100 PCIe": 756, "H100": 989, "H200": 989, "A100": 312, "L40S": 362, "4090": 165}
RANK, SEQUENCE = 16, 1024


def flops_per_token(shape: str) -> float:
    vocabulary, hidden, intermediate, layers, heads, kv_heads, size = SHAPES[shape]
    kv_projection = (kv_heads * size, hidden)
    matrices = [(heads * size, hidden), kv_projection, kv_projection, (hidden, heads * size)]
    matrices += [(intermediate, hidden), (intermediate, hidden), (hidden, intermediate)]
    frozen = layers * sum(a * b for a, b in matrices) + vocabulary * hidden
    lora = layers * sum(RANK * (a + b) for a, b in matrices)
    return 4 * frozen + 6 * lora + 6 * layers * SEQUENCE * heads * size


def gpu_name() -> str:
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return output.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown GPU"


def main() -> None:
    lines = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
    name = gpu_name()
    matches = (
        tflops for part, tflops in PEAK_TFLOPS.items() if all(word in name for word in part.split())
    )
    peak = next(matches, None)
    print(f"{name}; dense bf16 peak {peak or 'unknown'} TFLOP/s\n")
    print("| shape | trainer | tokens/s, median | min to max | MFU | ratio to torch.compile, same round |")
    print("|---|---|---|---|---|---|")
    for shape in SHAPES:
        rounds: dict[str, dict[int, float]] = {}
        for line in lines:
            if line["shape"] == shape and "result" in line:
                result = line["result"]
                speed = result["tokens_per_step"] / result["seconds_per_step"]
                rounds.setdefault(result["who"], {})[line["round"]] = speed
        compiled = rounds.get("torch.compile", {})
        for trainer, by_round in rounds.items():
            speeds = list(by_round.values())
            median = statistics.median(speeds)
            mfu = f"{100 * median * flops_per_token(shape) / peak / 1e12:.1f} %" if peak else "-"
            ratios = [speed / compiled[number] for number, speed in by_round.items() if number in compiled]
            ratio = f"{statistics.median(ratios):.2f}" if ratios else "-"
            spread = f"{min(speeds):,.0f} to {max(speeds):,.0f}"
            print(f"| {shape} | {trainer} | {median:,.0f} | {spread} | {mfu} | {ratio} |")
        for line in lines:
            if line["shape"] == shape and "failed" in line:
                print(f"| {shape} | failed: {line['failed']} | | | | |")


if __name__ == "__main__":
    main()
