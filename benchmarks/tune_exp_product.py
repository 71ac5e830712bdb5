"""Times of the product with exponentials in its epilogue for a handful of tiles, beside the library's plain product.

``python benchmarks/tune_exp_product.py [--seconds 240]`` on a GPU of compute capability 9.0; prints a line per tile, at
once. What wins by a margin goes into ``configuration`` of ``kernels/pope_kernels/triton/exp_product.py``.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from gpu_timing import event_times

from pope_kernels.triton import exp_product
from pope_kernels.triton.exp_product import Configuration

TOKENS, VOCAB = 8192, 128256
CONFIGURATIONS = [
    Configuration(128, cols, depth, group, warps, stages, tma=True, persistent=persistent)
    for cols, depth, warps in ((256, 64, 8), (128, 64, 8), (128, 128, 8), (128, 64, 4))
    for stages in (3, 4)
    for group in (8, 16, 64)
    for persistent in (True, False)
]


def median_ms(work: object) -> float:
    return statistics.median(event_times(lambda _: work()))  # type: ignore[operator]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240.0, help="no further tile is begun after that")
    end = time.monotonic() + parser.parse_args().seconds
    for width in (2048, 4096):
        hidden = torch.randn(TOKENS, width, device="cuda", dtype=torch.bfloat16)
        weight = (torch.randn(VOCAB, width, device="cuda") * width**-0.5).bfloat16()
        labels = torch.randint(0, VOCAB, (TOKENS,), device="cuda")
        out = torch.empty(TOKENS, VOCAB, device="cuda", dtype=torch.bfloat16)
        plain = median_ms(lambda hidden=hidden, weight=weight, out=out: torch.mm(hidden, weight.t(), out=out))
        print(f"width {width}: torch.mm {plain:.2f} ms", flush=True)
        for each in CONFIGURATIONS:
            if time.monotonic() > end:
                return
            exp_product.configuration = lambda *shape, each=each: each
            try:
                written, scored = (
                    median_ms(
                        lambda target=target, hidden=hidden, weight=weight, labels=labels: exp_product.scaled_exp(
                            hidden, weight, None, labels, target
                        )
                    )
                    for target in (out, None)
                )
                print(f"  {written:6.2f} ms, without E {scored:6.2f} ms  {each}", flush=True)
            except Exception as error:  # a tile that does not fit says so in its own way
                print(f"  {type(error).__name__}: {str(error).splitlines()[0][:100]}  {each}", flush=True)


if __name__ == "__main__":
    main()
