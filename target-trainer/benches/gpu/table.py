"""Results of `run.sh` -> a table: tokens per second, MFU, ratio to torch.compile in the same round.

FLOPs of a token of LoRA training, counted as matrix products:
  4 N      forward and backward through the frozen matrices: 2 N each way; no gradient of a frozen matrix is made
  6 A      the LoRA matrices themselves: forward, gradient of the input, gradient of the weight
  6 L s h  causal attention: 2 L s h forward (half of the square), twice that backward; h = heads x head size
N: elements of all matrices that tokens are multiplied by, the output head among them and the embedding not. The peak is that of the
card's dense bf16 tensor cores, from NVIDIA's data sheets. Recomputation inside a kernel counts as nothing.
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
    vocabulary, hidden, middle, layers, heads, kv_heads, size = SHAPES[shape]
    matrices = [(heads * size, hidden), (kv_heads * size, hidden), (kv_heads * size, hidden), (hidden, heads * size)]
    matrices += [(middle, hidden), (middle, hidden), (hidden, middle)]
    frozen = layers * sum(a * b for a, b in matrices) + vocabulary * hidden
    lora = layers * sum(RANK * (a + b) for a, b in matrices)
    return 4 * frozen + 6 * lora + 6 * layers * SEQUENCE * heads * size


def card() -> str:
    asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown card"


def main() -> None:
    lines = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
    name = card()
    peak = next((tflops for part, tflops in PEAK_TFLOPS.items() if all(word in name for word in part.split())), None)
    print(f"{name}; dense bf16 peak {peak or 'unknown'} TFLOP/s\n")
    print("| shape | who | tokens/s, median of rounds | spread | MFU | over torch.compile, same round |")
    print("|---|---|---|---|---|---|")
    for shape in SHAPES:
        rounds: dict[str, dict[int, float]] = {}
        for line in lines:
            if line["shape"] == shape and "result" in line:
                result = line["result"]
                rounds.setdefault(result["who"], {})[line["round"]] = result["tokens_per_step"] / result["seconds_per_step"]
        compiled = rounds.get("torch.compile", {})
        for who, by_round in rounds.items():
            speeds = list(by_round.values())
            middle = statistics.median(speeds)
            mfu = f"{100 * middle * flops_per_token(shape) / peak / 1e12:.1f} %" if peak else "-"
            ratios = [speed / compiled[number] for number, speed in by_round.items() if number in compiled]
            ratio = f"{statistics.median(ratios):.2f}" if ratios else "-"
            print(f"| {shape} | {who} | {middle:,.0f} | {min(speeds):,.0f} to {max(speeds):,.0f} | {mfu} | {ratio} |")
        for line in lines:
            if line["shape"] == shape and "failed" in line:
                print(f"| {shape} | failed: {line['failed']} | | | | |")


if __name__ == "__main__":
    main()
