"""Make a full-size SDXL checkpoint of random fp16 weights (2.57 G-parameter UNet) on disk.

    python -m bench.full_size DIR        # 6.9 GB, about a minute and a half

Sizes and settings are those of stabilityai/stable-diffusion-xl-base-1.0; the values are random.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from convert.toy.random_checkpoint import WORDS, Configs, write_checkpoint

SDXL = Configs(
    unet={
        "sample_size": 128,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [5, 10, 20],
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
    },
    vae={
        "sample_size": 1024,
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "scaling_factor": 0.13025,
    },
    text_encoder={
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "hidden_act": "quick_gelu",
        "projection_dim": 768,
        "eos_token_id": 2,
    },
    text_encoder_2={
        "vocab_size": 49408,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 20,
        "num_hidden_layers": 32,
        "hidden_act": "gelu",
        "projection_dim": 1280,
        "eos_token_id": 2,
    },
)


def main() -> None:
    """Write the checkpoint into the folder named on the command line."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m bench.full_size DIR")
    start = time.perf_counter()
    written = 0

    def advance(count: int) -> None:
        nonlocal written
        before, written = written, written + count
        if written // 10**9 != before // 10**9:
            seconds = time.perf_counter() - start
            print(f"{written / 1e9:.0f} GB, {written / 1e6 / seconds:.0f} MB/s", file=sys.stderr)

    write_checkpoint(Path(sys.argv[1]), SDXL, words=WORDS.split(), advance=advance)


if __name__ == "__main__":
    main()
